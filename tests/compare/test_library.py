"""The whole way in Python: objects in, a Comparison out."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny
import torch
import xarray as xr
from PIL import Image
from torch import nn

import cnnf_brain as cb
from cnnf_brain import networks, style
from cnnf_brain.checks import ModelError
from cnnf_brain.compare import comparison, evaluate
from cnnf_brain.compare.__main__ import main
from cnnf_brain.gram import Features
from cnnf_brain.predictivity.crossval import make_splits
from cnnf_brain.predictivity.hierarchy import HIERARCHICAL
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.predictivity.scores import median_r, score_predictions
from cnnf_brain.report import NotDrawnError
from cnnf_brain.report import page as report_page
from cnnf_brain.report.__main__ import main as report_command
from cnnf_brain.scratch import Scratch
from cnnf_brain.types import Gram, Images, Lazy

N, SITES = 40, 5
FEW = cb.Scoring(components=3)


def pixels(seed: int = 0) -> npt.NDArray[Any]:
    return tiny.pictures(N, seed, size=16)


def responses(images: npt.NDArray[Any], seed: int = 0) -> npt.NDArray[Any]:
    """(N, SITES): linear in the colours of the images, with noise."""
    rng = np.random.default_rng(seed)
    colours = images.mean(axis=(1, 2))
    signal = (colours - colours.mean(axis=0)) @ rng.standard_normal((3, SITES))
    return signal / signal.std(axis=0) + 0.3 * rng.standard_normal((len(images), SITES))


def recordings(region: str = "V4", seed: int = 0, source: str = "mine") -> cb.Recordings:
    images = pixels(seed)
    return cb.Recordings.from_arrays(responses(images, seed), images, region=region, source=source)


def plain(seed: int = 0) -> cb.Network:
    """A network in memory, without named layers."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 14 * 14, 10))
    return cb.Network(module, cb.Preprocessing(16), name=f"plain{seed}")


def recurrent() -> cb.Network:
    return tiny.network(size=16)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(tmp_path / "cache"))


def scored(*args: Any, **more: Any) -> cb.Comparison:
    return cb.compare(*args, **{"scoring": FEW, "progress": False, **more})


def test_a_module_in_memory_against_another() -> None:
    result = scored(recurrent(), plain(), recordings(), {"V4": ["pool2@0", "pool2@1"]}, baseline_layers={"V4": "1"})
    rows = result.table()
    assert list(rows["role"]) == ["baseline", "control", "model"]
    assert list(rows["layer"]) == ["1", "pool2", "pool2"]
    assert list(rows["iteration"]) == [0, 0, 1]
    assert rows["median_r"][0] > 0.2
    assert rows["difference"].notna().tolist() == [False, True, True]
    assert result.answer in repr(result)


def test_a_joint_layer_against_its_first_pass(tmp_path: Path) -> None:
    """r of the rows is that of PLS on the features side by side."""
    network, sites = recurrent(), recordings()
    result = scored(network, network, sites, "pool2@0+1")
    rows = result.table()
    assert rows[["role", "layer", "iteration"]].to_numpy().tolist() == [["baseline", "pool2", 0], ["model", "pool2", "0+1"]]
    batch = torch.stack([network.preprocessing(sites.images.decode(i)) for i in range(N)])
    with torch.inference_mode():
        maps = network.module.unroll(batch, return_layers=["pool2@0", "pool2@1"]).layers
    X = torch.cat([one.flatten(1).double() for one in maps.values()], dim=1).numpy()
    predictions = cross_predict(X @ X.T, sites.responses, make_splits("kfold", sites.images.ids), 3)
    np.testing.assert_allclose(result.evaluations[1].scores.r, score_predictions(predictions, sites.responses).r, atol=1e-5)
    again = cb.Comparison.load(result.save(tmp_path / "mine"))
    assert (again.evaluations[1].layer, again.evaluations[1].against) == ("pool2@0+1", "pool2@0")
    assert "pool2 | 0+1 |" in " ".join(again.markdown().split())


def test_every_row_tells_the_effective_dimension_of_its_features(tmp_path: Path) -> None:
    network, sites = recurrent(), recordings()
    result = scored(network, network, sites, "pool2@1", scoring=cb.Scoring(components=3, unit_norm=True))
    batch = torch.stack([network.preprocessing(sites.images.decode(i)) for i in range(N)])
    with torch.inference_mode():
        maps = network.module.unroll(batch, return_layers=["pool2@0", "pool2@1"]).layers.values()
    expected = []
    for one in maps:
        rows = one.flatten(1).double()
        X = (rows / rows.norm(dim=1, keepdim=True)).numpy()
        variances = np.linalg.svd(X - X.mean(axis=0), compute_uv=False) ** 2
        expected.append(variances.sum() ** 2 / (variances**2).sum())
    assert result.table()["effective_dimension"].tolist() == pytest.approx(expected, rel=1e-4)
    assert "scaled to norm 1" in result.markdown()
    assert f"{min(expected):.1f} (" in result.markdown()
    folder = result.save(tmp_path / "mine")
    stored = xr.open_dataset(folder / "scores.nc")["effective_dimension"].values
    np.testing.assert_allclose(stored, np.repeat(expected, SITES), rtol=1e-4)
    assert cb.Comparison.load(folder).summary == result.summary


def test_a_joint_layer_of_the_baseline_and_one_that_is_not_run() -> None:
    network = recurrent()
    result = scored(network, network, recordings(), "pool2@0+1", baseline_layers="pool2@1")
    assert [row["baseline_layer"] for row in result.rows if row["layer"] == "pool2@0+1"] == ["pool2@1"]
    other = scored(plain(), network, recordings(), "1", baseline_layers="pool2@0+1")
    assert [row["layer"] for row in other.rows] == ["pool2@0+1", "1@0"]
    with pytest.raises(ValueError, match="pool2@9: iteration 9 is not run"):
        scored(network, network, recordings(), "pool2@0+9")


def test_the_command_gives_the_same_numbers(tmp_path: Path) -> None:
    path = tiny.recordings(tmp_path / "v4", "V4", n_repeats=4)
    (tmp_path / "nets.py").write_text(tiny.FILE)
    model = cb.load_network(f"{tmp_path}/nets.py:feedback")
    mine = scored(model, model, cb.load_recordings(str(path), region="V4"), scoring=cb.Scoring(components=4))
    words = ["--layers", "V4", "--model", f"{tmp_path}/nets.py:feedback", "--recordings", str(path), "--components", "4"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    theirs = cb.Comparison.load(tmp_path / "out")
    for one, other in zip(mine.rows, theirs.rows, strict=True):
        assert {**one, "source": ""} == {**other, "source": ""}
    assert mine.answer == theirs.answer


def of_animals(seed: int, animals: str, **more: Any) -> cb.Recordings:
    """Recordings of which each site belongs to the animal that its letter names."""
    images = pixels(seed)
    given = responses(images, seed)[:, : len(animals)]
    return cb.Recordings.from_arrays(given, images, region="V4", source=f"day{seed}", subjects=list(animals), **more)


@pytest.mark.usefixtures("sketched")
def test_rows_of_each_animal(tmp_path: Path) -> None:
    days = [of_animals(0, "WWWW"), of_animals(1, "PPP"), of_animals(2, "WPPWW")]
    result = scored(recurrent(), plain(), days, "pool2@1", baseline_layers="1")
    models = {one.source: one for one in result.evaluations if one.role == "model"}
    assert [*models] == ["day0", "day1", "day2", "pooled W", "pooled P", "pooled"]
    assert [one.pooled for one in models.values()] == [False] * 3 + [True] * 3
    r = {name: one.scores.r for name, one in models.items()}
    assert np.array_equal(r["pooled W"], np.hstack([r["day0"], r["day2"][:, [0, 3, 4]]]))
    assert np.array_equal(r["pooled P"], np.hstack([r["day1"], r["day2"][:, [1, 2]]]))
    assert models["pooled P"].site_ids == ("day1/site0", "day1/site1", "day1/site2", "day2/site1", "day2/site2")
    for animal in "WP":
        assert set(models[f"pooled {animal}"].subjects) == {animal}
    bases = {one.source: one.scores.r for one in result.evaluations if one.role == "baseline"}
    found = models["pooled P"].comparison
    assert found is not None
    assert found.difference == pytest.approx(np.median((r["pooled P"] - bases["pooled P"]).mean(axis=0)))
    assert [test.n for test in found.tests if test.name == "paired t over sites"] == [5]
    loaded = cb.Comparison.load(result.save(tmp_path / "mine"))
    assert loaded.summary == result.summary
    assert [one.subjects for one in loaded.evaluations] == [one.subjects for one in result.evaluations]
    assert "pooled W and P: all sites of that animal" in result.markdown()


def test_animals_are_tested_in_the_pooled_rows_alone() -> None:
    days = [of_animals(0, "WWWW"), of_animals(1, "PPP"), of_animals(2, "WPPWW")]
    result = scored(recurrent(), plain(), days, "pool2@1", baseline_layers="1")
    tested = {one.source: one.comparison for one in result.evaluations if one.role == "model"}
    n = {name: [t.n for t in made.tests if t.name == HIERARCHICAL] for name, made in tested.items() if made}
    assert n == {"day0": [], "day1": [], "day2": [2], "pooled W": [], "pooled P": [], "pooled": [2]}
    rows = {row["source"]: row for row in result.rows if row["role"] == "model"}
    (found,) = [t for t in rows["pooled"]["tests"] if t["name"] == HIERARCHICAL]
    assert (found["question"], found["df"]) == ("new animals", 1)
    r = {
        name: {one.source: one.scores.r.mean(axis=0) for one in result.evaluations if one.role == name}
        for name in ("model", "baseline")
    }
    d = {source: r["model"][source] - r["baseline"][source] for source in r["model"]}
    w, p = (
        np.mean([np.median(d[day]), np.median(d["day2"][sites])]) for day, sites in (("day0", [0, 3, 4]), ("day1", [1, 2]))
    )
    assert np.mean(found["interval"]) == pytest.approx((w + p) / 2)
    assert "almost no power and cannot speak for other animals" in result.markdown()
    assert HIERARCHICAL not in result.answer


@pytest.mark.filterwarnings("ignore::cnnf_brain.predictivity.ridge.GridEndWarning")
def test_ridge_has_a_test_over_animals_and_an_agreement_has_none() -> None:
    days = [of_animals(0, "WWWW"), of_animals(2, "WPPWW")]
    found = scored(recurrent(), plain(), days, "pool2@1", baseline_layers="1", scoring=cb.Scoring(metric=("ridge", "cka")))
    rows = [(one.metric, one.source, one.comparison) for one in found.evaluations if one.role == "model"]
    over_animals = {(name, at): HIERARCHICAL in {t.name for t in made.tests} for name, at, made in rows if made}
    assert over_animals == {
        ("ridge", "day0"): False,
        ("cka", "day0"): False,
        ("ridge", "day2"): True,
        ("cka", "day2"): False,
        ("ridge", "pooled W"): False,
        ("ridge", "pooled P"): False,
        ("ridge", "pooled"): True,
        ("cka", "pooled"): False,
    }


@pytest.mark.filterwarnings("ignore::cnnf_brain.predictivity.ridge.GridEndWarning")
@pytest.mark.parametrize("settings", [{"components": 3}, {"metric": "ridge"}])
def test_a_layer_chosen_on_one_animal_is_scored_on_the_others(settings: dict[str, Any]) -> None:
    days = [of_animals(0, "WWWW"), of_animals(1, "PPP"), of_animals(2, "WPPWW")]
    layers = ["relu1@2", "pool2@1"]
    each, found = (
        scored(recurrent(), plain(), days, layers, baseline_layers="1", scoring=cb.Scoring(**settings, select=select))
        for select in (None, "animal")
    )
    assert [(one.source, one.role) for one in found.evaluations] == [
        ("chosen on W", "baseline"),
        ("chosen on W", "model"),
        ("chosen on P", "baseline"),
        ("chosen on P", "model"),
    ]
    for one in found.evaluations:
        on, other = ("W", "P") if one.source == "chosen on W" else ("P", "W")
        mine = one.network.endswith("plain0 CNN") or one.role == "baseline"
        rows = [row for row in each.evaluations if row.source == f"pooled {on}" and (row.role == "baseline") == mine]
        best = max(rows, key=lambda row: median_r(row.scores))  # type: ignore[arg-type]
        assert one.layer == best.layer
        same, *_ = [
            r
            for r in each.evaluations
            if r.source == f"pooled {other}" and r.layer == best.layer and (r.role == "baseline") == mine
        ]
        assert np.array_equal(one.scores.r, same.scores.r)
        assert set(one.subjects) == {other}
        assert (one.comparison is None) == mine
    assert "chosen on: the layer and iteration that do best for that animal" in found.markdown()


def test_one_animal_cannot_choose_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Features, "compute", lambda *_: pytest.fail("long work has started"))
    with pytest.raises(ValueError, match=r"V4: to choose layers on one animal .* these name W$"):
        scored(recurrent(), None, of_animals(0, "WWW"), "pool2@1", scoring=cb.Scoring(components=3, select="animal"))
    with pytest.raises(ValueError, match=r"these name none \(subjects\)"):
        scored(recurrent(), None, recordings(), "pool2@1", scoring=cb.Scoring(components=3, select="animal"))


def test_unreliable_sites_are_left_out_and_counted() -> None:
    images, rng = pixels(), np.random.default_rng(0)
    repeats = responses(images)[..., None] + np.array([0.1, 0.1, 9.0, 0.1, 0.1])[:, None] * rng.standard_normal(
        (N, SITES, 4)
    )
    mine = cb.Recordings.from_arrays(repeats, images, region="V4", subjects=list("ababa"))
    strict = cb.Scoring(components=3, min_reliability=0.5)
    result = scored(recurrent(), None, mine, "pool2@1", scoring=strict)
    (row,) = [one for one in result.evaluations if one.source == "arrays" and one.layer == "pool2@1"]
    assert row.site_ids == ("site0", "site1", "site3", "site4")
    (name,) = row.excluded
    assert re.fullmatch(r"site2 \(reliability -?0\.\d\d, below 0\.5\)", name)
    assert name in result.markdown()
    assert result.run["recordings"][0]["excluded"] == [name]
    assert scored(recurrent(), None, mine, "pool2@1").evaluations[0].excluded == ()
    with pytest.raises(ValueError, match=r"mine: min_reliability = 0.5 needs single repeats"):
        scored(recurrent(), None, recordings(), "pool2@1", scoring=strict)
    none = cb.Recordings.from_arrays(rng.standard_normal((N, 3, 4)), images, region="V4")
    with pytest.raises(ValueError, match=r"no site has a reliability of 0.9, the highest is"):
        scored(recurrent(), None, none, "pool2@1", scoring=cb.Scoring(components=3, min_reliability=0.9))
    with pytest.raises(ValueError, match="min_reliability is 2, expected None or a number from 0"):
        cb.Scoring(min_reliability=2)


def test_animals_without_rows_of_their_own() -> None:
    def sources(*days: cb.Recordings) -> list[str]:
        rows = scored(recurrent(), None, list(days), "pool2@1").evaluations
        return list(dict.fromkeys(one.source for one in rows))

    assert sources(of_animals(0, "WWWW"), of_animals(1, "PPP")) == ["day0", "day1", "pooled"]  # the rows would be the same
    assert sources(of_animals(0, "WWWW"), of_animals(1, "WWW")) == ["day0", "day1", "pooled"]
    assert sources(of_animals(0, "WWPP")) == ["day0", "pooled W", "pooled P"]
    unknown = recordings(seed=3, source="unknown")
    assert sources(of_animals(0, "WWPP"), unknown) == ["day0", "unknown", "pooled W", "pooled P", "pooled"]


def test_saved_and_loaded(tmp_path: Path) -> None:
    result = scored(recurrent(), plain(), recordings(), "pool2", baseline_layers="1")
    assert result.save(tmp_path / "mine") == tmp_path / "mine"
    again = cb.Comparison.load(tmp_path / "mine")
    assert again.summary == result.summary == json.loads((tmp_path / "mine" / "summary.json").read_text())
    assert again.table().equals(result.table())
    result.save(tmp_path / "mine")  # the same question
    other = scored(recurrent(), None, recordings(), "pool2")
    with pytest.raises(ValueError, match="holds the results of another question"):
        other.save(tmp_path / "mine")


@pytest.mark.parametrize("fails", ["figure", "page"])
def test_a_figure_or_page_that_fails_loses_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    result, folder = scored(recurrent(), plain(), recordings(), "pool2", baseline_layers="1"), tmp_path / "mine"
    where, files = (style, ["figure.png", "figure.svg"]) if fails == "figure" else (report_page, ["report.html"])
    with monkeypatch.context() as patch:
        patch.setattr(where, "save" if fails == "figure" else "write", lambda *_: 1 / 0)
        with pytest.raises(
            NotDrawnError,
            match=rf"mine has all results, but no {' and '.join(files)} \(ZeroDivisionError: .*cnnf-brain report .*mine$",
        ):
            result.save(folder)
    written = {path.name for path in folder.iterdir()}
    assert written == set(comparison.FILES) - set(files)
    assert cb.Comparison.load(folder).summary == result.summary
    assert report_command([str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == set(comparison.FILES)
    for name in files[:2]:
        assert (folder / name).stat().st_size > 1000


def test_dollars_in_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """matplotlib would read what stands between two of them as mathematics, and fail."""
    network = cb.Network(plain().module, cb.Preprocessing(16), name="a$_{b$", weights="$x^{$")
    of = cb.Recordings.from_arrays(responses(pixels()), pixels(), region="V4", source="$s\\frac$")
    folder = scored(network, None, of, "1").save(tmp_path / "mine")
    drawn = (folder / "figure.svg").read_text()
    for name in ("a$_{b$", "$x^{$ 1@0", "$s\\frac$"):
        assert name in drawn


class Recurrent(cb.CNNF):
    """With an attribute of its own under the name of one that the records read."""

    settings = ("lr", 0.1)  # type: ignore[assignment]


@pytest.mark.parametrize("what", ["site", "image", "source", "network", "weights", "an attribute"])
def test_what_no_file_can_hold_is_found_before_work(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(Scratch, "append", lambda *a: pytest.fail("long work has started"))
    bad = "a\x01b" if what != "network" else b"a\xff".decode(errors="surrogateescape")

    def call() -> object:
        if what == "an attribute":
            module = Recurrent(tiny.layers(), iterations=1)
            return scored(cb.Network(module, cb.Preprocessing(16)), None, recordings(), "pool2")
        if what in ("network", "weights"):
            name, weights = (bad, "fine") if what == "network" else ("fine", bad)
            return cb.Network(plain().module, cb.Preprocessing(16), name=name, weights=weights)
        named = {"site": {"site_ids": [bad, *"bcde"]}, "image": {"image_ids": [bad, *map(str, range(N - 1))]}}
        return labelled(**named[what]) if what in named else recordings(source=bad)

    with pytest.raises((ValueError, AttributeError), match="as_dict" if what == "an attribute" else "which is no text"):
        call()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize(
    "scoring", [cb.Scoring(), cb.Scoring(select="nested"), cb.Scoring(pca=1000), cb.Scoring(per_site=True)], ids=str
)
def test_scoring_takes_no_more_memory_than_is_asked_for(
    empty_cache: None, monkeypatch: pytest.MonkeyPatch, scoring: cb.Scoring
) -> None:
    monkeypatch.setattr(evaluate, "SMALL_BYTES", 2**24)
    n, sites, rng = 1500, 40, np.random.default_rng(0)
    features, images = rng.standard_normal((n, 300)), Images.of(np.zeros((n, 4, 4, 3), dtype=np.uint8))
    of = cb.Recordings.from_arrays(features[:, :sites] + rng.standard_normal((n, sites)), images, region="V4")
    ats = [cb.LayerAt("layer", t) for t in range(3)]
    grams = Lazy(ats, lambda at: Gram(at, features @ features.T, 300))
    taken = tiny.grown(lambda: evaluate._part(of, [grams], scoring))
    asked = evaluate.scoring_bytes(of, scoring, 3)
    assert taken < asked < 60 * 8 * n**2


def test_workers_change_no_number_and_are_no_part_of_what_was_asked(empty_cache: None) -> None:
    made = [scored(plain(), None, recordings(), "1", scoring=cb.Scoring(components=3, workers=n)) for n in (1, 0)]
    with_workers, without = (one.evaluations[0].scores.r for one in made)
    np.testing.assert_array_equal(with_workers, without)
    assert made[0].run["configuration"] == made[1].run["configuration"]
    assert 0 < made[0].run["networks_ran"]["waited_for_images"] <= made[0].run["networks_ran"]["seconds"]
    assert made[1].run["networks_ran"]["seconds"] == 0, "all was in the cache"


def test_the_figure_is_matplotlib_s() -> None:
    from matplotlib.figure import Figure

    figure = scored(plain(), None, recordings(), "1").plot()
    assert isinstance(figure, Figure)
    assert "median Pearson's r" in figure.axes[0].get_ylabel()


def test_one_network_alone() -> None:
    result = scored(plain(), None, recordings(), layers="1")
    (row,) = result.rows
    assert (row["role"], row["layer"]) == ("model", "1@0")
    assert "difference" not in row
    assert result.answer == "No row has a difference to a baseline: the table stands alone."


def test_a_model_against_its_own_first_pass() -> None:
    model = recurrent()
    rows = scored(model, model, recordings(), "pool2").table()
    assert list(zip(rows["role"], rows["iteration"], strict=True)) == [("baseline", 0), ("model", 1), ("model", 2)]


def test_several_models_and_regions_and_recordings() -> None:
    of = [recordings(), recordings("IT", 1), recordings("IT", 2, "other")]
    result = scored([plain(1), plain(2)], plain(), of, {"V4": "1", "IT": ["1", "2"]})
    rows = result.table()
    assert list(dict.fromkeys(zip(rows["region"], rows["source"], strict=True))) == [
        ("V4", "mine"),
        ("IT", "mine"),
        ("IT", "other"),
        ("IT", "pooled"),
    ]
    assert set(rows["network"]) == {"plain0", "plain1", "plain2"}
    assert len(rows) == 3 + 3 * 3 * 2
    assert set(rows.loc[rows["source"] == "pooled", "sites"]) == {2 * SITES}
    adjusted = rows.filter(like="p: ").loc[rows["role"] == "model"]
    assert adjusted.notna().all(axis=None)


def test_layers_of_the_network_where_none_are_named() -> None:
    named = cb.Network(plain().module, cb.Preprocessing(16), layers={"V4": "1"})
    assert scored(named, None, recordings()).rows[0]["layer"] == "1@0"
    with pytest.raises(ValueError, match="plain0: no layer is known for region 'V4'; name one"):
        scored(plain(), None, recordings())


def test_images_as_paths_pil_images_and_arrays_are_the_same(tmp_path: Path) -> None:
    array = pixels()
    pictures = [Image.fromarray(one) for one in array]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number:02}.png")
    paths = sorted(tmp_path.glob("*.png"))
    values, ids = responses(array), [path.stem for path in paths]  # the folds are drawn by id
    found = [
        scored(plain(), None, cb.Recordings.from_arrays(values, images, region="V4", image_ids=ids), "1").rows[0]["median_r"]
        for images in (array, pictures, paths, [str(path) for path in paths])
    ]
    assert len(set(found)) == 1


def test_progress_is_reported(empty_cache: None) -> None:
    seen: list[tuple[str, int, int]] = []
    scored(plain(), None, recordings(), "1", progress=lambda *now: seen.append(now))
    assert [done for _, done, _ in seen] == list(range(8, N + 1, 8))
    assert {(what, total) for what, _, total in seen} == {("plain0: 1@0", N)}


def test_an_interrupted_comparison_goes_on(empty_cache: None) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(plain(), None, recordings(), "1", progress=stop)
    seen: list[int] = []
    first = scored(plain(), None, recordings(), "1", progress=lambda what, done, total: seen.append(done))
    assert seen == [24, 32, 40], "from the images that were done"
    assert scored(plain(), None, recordings(), "1").rows == first.rows


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    first = scored(plain(), None, recordings(), "1")
    monkeypatch.setattr(Scratch, "append", lambda *a: pytest.fail("computed again"))
    assert scored(plain(), None, recordings(), "1").rows == first.rows


def small(iterations: int) -> cb.Network:
    return cb.load_network("small", "none", iterations=iterations)


@pytest.mark.parametrize("regions", [("V4",), ("V4", "IT")])
@pytest.mark.parametrize("baseline", ["the CNN of the same weights", "its own first pass"])
def test_the_network_sees_each_image_once(
    empty_cache: None, monkeypatch: pytest.MonkeyPatch, baseline: str, regions: tuple[str, ...]
) -> None:
    """Whatever is compared over these images; the CNN is the first pass of its CNN-F and is never run."""
    model, of = small(2), [recordings(region) for region in regions]
    other = small(0) if baseline.startswith("the CNN") else model
    seen: dict[int, int] = {}
    below = cb.CNNF.below_target

    def counted(self: cb.CNNF, x: torch.Tensor, wanted: Any = ()) -> Any:
        seen[id(self)] = seen.get(id(self), 0) + len(x)
        return below(self, x, wanted)

    monkeypatch.setattr(cb.CNNF, "below_target", counted)
    rows = scored(model, other, of, ["relu1", "pool2"]).table()
    tried = 4 + 4 + 1 + 3  # the first images, shown before long work
    assert seen == {id(model.module): tried + N}
    assert set(rows["iteration"]) == {0, 1, 2}
    alone = scored(small(0), None, of, ["relu1", "pool2"]).table()
    assert rows.loc[rows["role"] == "baseline", "median_r"].tolist() == alone["median_r"].tolist()


def test_the_module_of_a_network_is_in_evaluation_mode() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Dropout(0.5), nn.ReLU())
    assert cb.Network(module, cb.Preprocessing(16)).module.training is False
    assert scored(cb.Network(module, cb.Preprocessing(16)), None, recordings(), "2").rows[0]["median_r"] is not None


def test_a_card_decides_and_arguments_override() -> None:
    small = cb.load_network("small")
    assert (small.iterations, small.feedback) == (small.card.iterations, networks.TRAINED)
    assert cb.load_network("small", iterations=1).iterations == 1


MODEL = plain()


def spoiled() -> cb.Network:
    network = plain()
    nn.init.constant_(next(network.module.parameters()), float("nan"))
    return network


class Failing(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such thing")


def failing() -> cb.Network:
    return cb.Network(Failing(nn.Conv2d(3, 4, 3)), cb.Preprocessing(16))


def broken() -> cb.Recordings:
    """The last image is none."""
    images = [Image.fromarray(one) for one in pixels()]
    made = cb.Recordings.from_arrays(responses(pixels()), images, region="V4")
    read = made.images.read
    object.__setattr__(made.images, "read", lambda i: b"no picture" if i == N - 1 else read(i))
    return made


BAD: dict[str, tuple[Any, str]] = {
    "no recordings": (lambda: scored(plain(), None, [], "1"), "recordings: the list is empty"),
    "an unknown layer": (lambda: scored(plain(), None, recordings(), "relu"), "layer 'relu' is not known"),
    "an iteration that is not run": (lambda: scored(plain(), None, recordings(), "1@1"), "runs no feedback"),
    "another region": (
        lambda: scored(plain(), None, recordings(), {"IT": "1"}),
        "named for the regions IT, but the regions are V4",
    ),
    "a baseline's layers and no baseline": (
        lambda: scored(plain(), None, recordings(), "1", baseline_layers="1"),
        "but there is no baseline",
    ),
    "too many components": (
        lambda: scored(plain(), None, recordings(), "1", scoring=cb.Scoring(components=36)),
        "36 components need more than 36 training images",
    ),
    "the same source twice": (
        lambda: scored(plain(), None, [recordings(), recordings(seed=1)], "1"),
        "two recordings with the source 'mine'",
    ),
    "the wrong size": (
        lambda: scored(cb.Network(plain().module, cb.Preprocessing(20)), None, recordings(), "3"),
        "cannot be run on images of shape",
    ),
    "no model": (lambda: scored([], None, recordings(), "1"), "model: the list is empty"),
    "no layers": (lambda: scored(plain(), None, recordings(), []), "layers is an empty list"),
    "recordings without layers": (
        lambda: scored(plain(), None, [recordings(), recordings("IT", 1)], {"IT": "1"}),
        "named for the regions IT, but the regions are V4, IT",
    ),
    "two networks of one name": (
        lambda: scored([plain(), cb.Network(plain(1).module, cb.Preprocessing(16), name="plain0")], None, recordings(), "1"),
        "two networks are called plain0",
    ),
    "a model that is given twice": (lambda: scored([MODEL, MODEL], plain(1), recordings(), "1"), "given twice as a model"),
    "double precision": (
        lambda: scored(cb.Network(plain().module.double(), cb.Preprocessing(16)), None, recordings(), "1"),
        "0.weight is torch.float64, expected float32",
    ),
    "the meta device": (
        lambda: scored(cb.Network(nn.Conv2d(3, 4, 3, device="meta"), cb.Preprocessing(16)), None, recordings(), "1"),
        "layer '1' is not known|on the meta device",
    ),
    "weights that are not numbers": (
        lambda: scored(spoiled(), None, recordings(), "1"),
        "features are not finite .*look at weights and preprocessing",
    ),
    "a forward that fails": (lambda: scored(failing(), None, recordings(), "0"), "cannot be run on images .*KeyError"),
    "a broken image": (lambda: scored(plain(), None, broken(), "1"), "image 'image39' cannot be decoded"),
    "half a component": (lambda: cb.Scoring(components=2.5), "components is 2.5, expected a whole number"),  # type: ignore[arg-type]
    "a word for a switch": (lambda: cb.Scoring(per_site="no"), "per_site is 'no', expected True or False"),  # type: ignore[arg-type]
    "unknown splits": (lambda: cb.Scoring(splits="foo"), "splits is 'foo', expected 'kfold' or 'brainscore'"),
    "a single mean": (lambda: cb.Preprocessing(16, mean=0.5), "mean is 0.5, expected three numbers"),  # type: ignore[arg-type]
    "an unknown choice": (lambda: cb.Scoring(select="best"), "select is 'best', expected None or 'nested'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_arguments_are_told_before_long_work_and_without_flags(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scratch, "append", lambda *a: pytest.fail("long work has started"))
    call, message = BAD[kind]
    with pytest.raises((ValueError, ModelError), match=message) as told:
        call()
    assert "--" not in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.ReLU(), None, recordings()), "model holds a ReLU, expected a Network or a list of them"),
        (("vgg16", None, recordings()), "model holds a str"),
        ((plain(), nn.ReLU(), recordings()), "baseline is a ReLU, expected a cnnf_brain.Network or None"),
        ((plain(), None, np.zeros((3, 3))), "recordings holds a ndarray, expected a Recordings"),
        ((plain(), None, recordings(), 3), "layers are 3, expected a name"),
        ((plain(), None, recordings(), {"V4": None}), "layers are None, expected a name"),
    ],
)
def test_arguments_of_other_types(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        scored(*arguments)


@pytest.mark.parametrize(
    ("more", "message"),
    [({"scoring": {}}, "scoring is a dict"), ({"progress": "yes"}, "progress is 'yes', expected True, False")],
)
def test_settings_of_other_types(more: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        scored(plain(), None, recordings(), "1", **more)


CHANGES = {
    "baseline layers": lambda: scored(plain(), plain(1), recordings(), "1", baseline_layers="2"),
    "the other way round": lambda: scored(plain(1), plain(), recordings(), "1"),
    "preprocessing": lambda: scored(
        cb.Network(plain().module, cb.Preprocessing(16, (0.1,) * 3, (0.3,) * 3), name="plain0"), plain(1), recordings(), "1"
    ),
    "image ids": lambda: scored(plain(), plain(1), labelled(image_ids=[f"x{i:02}" for i in range(N)]), "1"),
    "site ids": lambda: scored(plain(), plain(1), labelled(site_ids=list("abcde")), "1"),
    "objects": lambda: scored(plain(), plain(1), labelled(object_names=["a", "b"] * (N // 2)), "1"),
}


def labelled(**labels: Any) -> cb.Recordings:
    return cb.Recordings.from_arrays(responses(pixels()), pixels(), region="V4", source="mine", **labels)


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_belongs_to_all_that_decides_the_numbers(change: str, tmp_path: Path) -> None:
    scored(plain(), plain(1), recordings(), "1").save(tmp_path / "mine")
    scored(plain(), plain(1), recordings(), "1").save(tmp_path / "mine")
    with pytest.raises(ValueError, match="holds the results of another question"):
        CHANGES[change]().save(tmp_path / "mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((lambda x: x, cb.Preprocessing(16)), "the module is a function"), ((nn.ReLU(), 16), "preprocessing is a int")],
)
def test_a_network_of_other_things(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        cb.Network(*arguments)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels()[0]).save(buffer, "PNG")
    paths = [tmp_path / f"{number}.png" for number in range(N)]
    for path in paths:
        Path(path).write_bytes(buffer.getvalue())
    paths[3].write_bytes(b"no picture")
    with pytest.raises(ValueError, match="image '3' cannot be decoded"):
        scored(plain(), None, cb.Recordings.from_arrays(responses(pixels()), paths, region="V4"), "1")


def test_the_readme_s_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "README.md").read_text()
    block = text.split("## In Python")[1].split("```python")[1].split("```")[0]
    small = {
        '"vgg16", weights="trained.safetensors"': '"small"',
        "Preprocessing(224)": "Preprocessing(28)",
        "features.16": "pool2",
    }
    for given, here in small.items():
        assert given in block
        block = block.replace(given, here)
    images = pixels()
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    module.add_module("layer2", nn.Conv2d(4, 4, 3))
    scope = {"my_module": module, "images": images, "responses": responses(images)}
    few = "recordings, scoring=cb.Scoring(components=3), progress=False, layers"
    exec(block.replace("recordings, layers", few), scope)
    assert cb.Comparison.load(tmp_path / "results" / "mine").summary == scope["result"].summary  # type: ignore[attr-defined]


def test_the_name_of_a_network_in_memory_says_nothing_about_its_accuracy() -> None:
    named = cb.Network(plain().module, cb.Preprocessing(16), name="vgg16 CNN", weights="IMAGENET1K_V1")
    assert scored(named, None, recordings(), "1").run["accuracy"] == []


def test_a_module_where_a_name_is_expected() -> None:
    with pytest.raises(TypeError, match="the network is named by a Sequential, expected a text"):
        cb.load_network(plain().module)  # type: ignore[arg-type]


class Few(nn.Module):
    """12 numbers of each image beside ``dead`` constants, which carry nothing."""

    def __init__(self, dead: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(12, 192, generator=torch.Generator().manual_seed(0)) / 14)
        self.dead, self.out = dead, nn.Identity()

    def forward(self, x: torch.Tensor) -> Any:
        return self.out(torch.cat([(x.flatten(1) @ self.weights.T).relu(), torch.zeros(len(x), self.dead)], 1))


def test_components_beyond_the_rank_of_features_are_none() -> None:
    """K of many features is summed in float32, whose rounding is no component; few features are regressed in float64."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    recordings = cb.Recordings.from_arrays(rng.standard_normal((60, 9)), pixels, region="V4")
    many, few = (cb.Network(Few(dead), cb.Preprocessing(8), name=f"{dead} dead") for dead in (300, 2))
    result = cb.compare(many, few, recordings, "out", scoring=cb.Scoring(components=14), progress=False)
    assert abs(result.table()["difference"].dropna().item()) < 1e-6
    assert result.table()["verdict"].dropna().item() == "undecided"
