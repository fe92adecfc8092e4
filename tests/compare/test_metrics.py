"""PLS, ridge, RSA and CKA in one comparison: by the command and in Python, saved, read again, refused where they do not fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import cnnf_brain as cb
from cnnf_brain import gram
from cnnf_brain.compare.__main__ import main
from cnnf_brain.compare.evaluate import layer_cka
from cnnf_brain.compare.scoring import check_scoring
from cnnf_brain.predictivity.crossval import make_splits
from cnnf_brain.predictivity.ridge import ridge_predict
from cnnf_brain.predictivity.scores import median_r, score_predictions
from cnnf_brain.predictivity.similarity import (
    compare_similarities,
    crossvalidated_gram,
    dissimilarities,
    resampled_similarity,
    similarity,
)
from cnnf_brain.types import Array, Images, LayerAt, Scores, Similarity

pytestmark = pytest.mark.filterwarnings("ignore::cnnf_brain.predictivity.ridge.GridEndWarning")
ALL = ("pls", "ridge", "rsa", "cka")
N = 40
LAYERS = ["pool2@0", "pool2@1"]


def pixels(seed: int = 0) -> Array:
    return tiny.pictures(N, seed, size=16)


def recordings(seed: int = 0, source: str = "mine") -> cb.Recordings:
    colours = pixels(seed).mean(axis=(1, 2))
    rng = np.random.default_rng(seed)
    signal = (colours - colours.mean(axis=0)) @ rng.standard_normal((3, 6))
    values = signal / signal.std(axis=0) + 0.3 * rng.standard_normal((N, 6))
    return cb.Recordings.from_arrays(values, pixels(seed), region="V4", source=source)


def rdms(n_subjects: int = 3) -> Array:
    responses = recordings().responses
    rng = np.random.default_rng(1)
    noisy = [responses + 0.5 * rng.standard_normal(responses.shape) for _ in range(n_subjects)]
    return np.array([dissimilarities(one @ one.T) for one in noisy])


def scored(sources: Any, metric: Any = ALL, **more: Any) -> cb.Comparison:
    network = tiny.network(size=16)
    settings: dict[str, Any] = {"components": 3} if "pls" in metric else {}
    scoring = cb.Scoring(metric=metric, **settings, **more)
    return cb.compare(network, network, sources, LAYERS, scoring=scoring, progress=False)


def k_of(layer: str, seed: int = 0) -> Array:
    at = LayerAt.parse(layer)
    return gram.layer_grams(tiny.network(size=16), Images.of(pixels(seed)), [at], progress=False)[at].values


@pytest.fixture(scope="module")
def four() -> cb.Comparison:
    return scored(recordings())


def by_metric(found: cb.Comparison, layer: str = "pool2@1") -> dict[str, Any]:
    return {one.metric: one for one in found.evaluations if one.layer == layer and one.role == "model"}


def test_each_metric_has_its_rows_from_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[LayerAt] = []
    once = gram.Features._read

    def noted(self: gram.Features, keys: Any, at: LayerAt) -> Any:
        read.append(at)
        return once(self, keys, at)

    monkeypatch.setattr(gram.Features, "_read", noted)
    found = scored(recordings())
    assert [(one.metric, one.layer) for one in found.evaluations] == [(name, at) for name in ALL for at in LAYERS]
    assert sorted(map(str, read)) == LAYERS


def test_the_numbers_are_those_of_the_functions(four: cb.Comparison) -> None:
    mine, found = recordings(), by_metric(four)
    k, base = k_of("pool2@1"), k_of("pool2@0")
    ridge, _ = ridge_predict(k, mine.responses, make_splits("kfold", mine.images.ids))
    assert median_r(found["ridge"].scores) == pytest.approx(median_r(score_predictions(ridge, mine.responses)))
    for name, measure, distance in (("rsa", "spearman", "cosine"), ("cka", "cka", "euclidean")):
        target = dissimilarities(mine.responses @ mine.responses.T, distance)
        one, other = (resampled_similarity(dissimilarities(each, distance), [target], measure) for each in (k, base))
        score = found[name].scores
        assert (score.measure, score.distance, score.ceiling) == (measure, distance, None)
        assert score.value == pytest.approx(similarity(dissimilarities(k, distance), target, measure))
        assert score.low < score.value < score.high
        expected, comparison = compare_similarities([(one, other)]), found[name].comparison
        assert (comparison.low, comparison.high) == pytest.approx((expected.low, expected.high))


def test_pls_is_what_it_is_alone(four: cb.Comparison) -> None:
    alone = scored(recordings(), "pls")
    for one, other in zip(alone.evaluations, four.evaluations[:2], strict=True):
        np.testing.assert_array_equal(one.scores.r, other.scores.r)
    assert "metric" not in alone.run["options"]
    assert "metric" not in alone.markdown()
    assert "median r [95%]" in alone.markdown()


def test_the_table_tells_metrics_apart(four: cb.Comparison) -> None:
    shown = four.markdown()
    assert "median r or agreement [95%]" in shown
    for name in ALL:
        assert f"| {name} " in shown
    assert "r and agreement are not on one scale" in shown
    assert "in median r" in four.answer
    assert "in agreement" in four.answer
    frame = four.table().set_index(["metric", "layer", "iteration"])
    assert frame.loc[("cka", "pool2", 1), "agreement"] == by_metric(four)["cka"].scores.value
    assert np.isnan(frame.loc[("cka", "pool2", 1), "median_r"])
    rsa = scored(recordings(), "rsa")
    assert "| agreement [95%] |" in " ".join(rsa.markdown().split())
    assert "median r" not in rsa.markdown()
    assert "agree with" in rsa.page().question


def test_saved_and_loaded(four: cb.Comparison, tmp_path: Path) -> None:
    again = cb.Comparison.load(four.save(tmp_path / "mine"))
    assert again.summary == four.summary
    assert again.table().equals(four.table())
    assert [one.metric for one in again.evaluations] == [one.metric for one in four.evaluations]
    assert again.evaluations[-1].scores == four.evaluations[-1].scores
    assert again.evaluations[-1].site_ids == four.evaluations[-1].site_ids
    page = (tmp_path / "mine" / "report.html").read_text()
    assert "dissimilarities of images" in page


def test_a_folder_from_before_there_were_metrics(tmp_path: Path, sketched: pytest.MonkeyPatch) -> None:
    """It is read as PLS, and the same comparison may be written into it again."""
    made = scored(recordings(), "pls")
    known = {"splits", "components", "per_site", "pca", "select", "seed", "batch_size", "layers"}  # as they were then
    assert set(made.run["options"]) == known
    folder = made.save(tmp_path / "old")
    summary = json.loads((folder / "summary.json").read_text())
    for row in summary["evaluations"]:
        del row["metric"], row["pooled"], row["subjects"]
    (folder / "summary.json").write_text(json.dumps(summary))
    tiny.scores(folder / "scores.nc").drop_vars(["metric", "subject"]).to_netcdf(folder / "scores.nc", engine="netcdf4")
    again = cb.Comparison.load(folder)
    assert {one.metric for one in again.evaluations} == {"pls"}
    assert again.summary == made.summary
    made.save(folder)
    with pytest.raises(ValueError, match="holds the results of another question"):
        scored(recordings(), "ridge").save(folder)


def test_through_the_command(tmp_path: Path, sketched: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nets.py").write_text(tiny.FILE)
    path = tiny.recordings(tmp_path / "v4", "V4", n_repeats=4)
    words = ["--layers", "V4", "--model", f"{tmp_path}/nets.py:feedback", "--recordings", str(path), "--components", "4"]
    assert main([*words, "--metric", *ALL, "--output", str(tmp_path / "out")]) == 0
    assert "| cka " in capsys.readouterr().out
    model = cb.load_network(f"{tmp_path}/nets.py:feedback")
    scoring = cb.Scoring(metric=ALL, components=4)
    mine = cb.compare(model, model, cb.load_recordings(path, region="V4"), scoring=scoring, progress=False)
    assert cb.Comparison.load(tmp_path / "out").rows == mine.rows


@pytest.mark.slow
def test_simulated_recordings_through_the_command(tmp_path: Path) -> None:
    words = ["--layers", "V4=pool2", "--iterations", "0", "1", "--recordings", "simulated", "--metric", *ALL]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    found = cb.Comparison.load(tmp_path / "out")
    assert [one.metric for one in found.evaluations] == [name for name in ALL for _ in range(3)]
    assert all(isinstance(one.scores, Scores if one.metric in ALL[:2] else Similarity) for one in found.evaluations)


def test_sources_are_pooled(tmp_path: Path) -> None:
    """Agreement: the mean over sources, with variances that add."""
    both = scored([recordings(0, "a"), recordings(1, "b")], ("ridge", "cka"))
    rows = {(one.source, one.metric): one for one in both.evaluations if one.layer == "pool2@1"}
    parts = [rows[source, "cka"].scores for source in "ab"]
    pooled = rows["pooled", "cka"]
    assert pooled.scores.value == pytest.approx(np.mean([one.value for one in parts]))
    halves = np.array([one.high - one.value for one in parts]) / 2
    assert pooled.scores.high - pooled.scores.value == pytest.approx(np.sqrt(np.sum(halves**2)), rel=0.02)  # t of other df
    assert (pooled.n_images, len(pooled.site_ids)) == (2 * N, 12)
    assert pooled.comparison.difference == pytest.approx(
        np.mean([rows[source, "cka"].comparison.difference for source in "ab"])
    )


def test_ridge_chooses_a_layer() -> None:
    found = scored(recordings(), "ridge", select="nested")
    model = found.evaluations[-1]
    assert (model.metric, model.layer, len(model.chosen)) == ("ridge", "nested", 10)
    assert set(model.chosen) <= set(LAYERS)


def test_dissimilarities_alone(tmp_path: Path) -> None:
    given = cb.Recordings.from_rdm(rdms(), pixels(), region="IT", source="fMRI")
    found = scored(given, ("rsa", "cka"))
    row = by_metric(found)["rsa"]
    expected = np.mean([similarity(dissimilarities(k_of("pool2@1"), "cosine"), rdm, "spearman") for rdm in rdms()])
    assert row.scores.value == pytest.approx(expected)
    low, high = row.scores.ceiling
    assert 0.3 < low < high <= 1
    assert f"{low:.3f}–{high:.3f}" in found.markdown()
    again = cb.Comparison.load(found.save(tmp_path / "out"))
    assert again.summary == found.summary
    assert given.rdms is not None
    changed = cb.Recordings.from_rdm(given.rdms * 2, pixels(), region="IT", source="fMRI")
    with pytest.raises(ValueError, match="another question"):
        scored(changed, ("rsa", "cka")).save(tmp_path / "out")


def test_repeats_give_agreements_a_ceiling_and_whitened_distances(tmp_path: Path) -> None:
    mine = recordings()
    noisy = mine.responses[:, :, None] + np.random.default_rng(2).standard_normal((N, 6, 4))
    repeated = cb.Recordings.from_arrays(noisy, pixels(), region="V4", source="repeated")
    found = scored(repeated, ("rsa", "cosine_cov"))
    rows = by_metric(found)
    target = dissimilarities(crossvalidated_gram(noisy))
    expected = similarity(dissimilarities(k_of("pool2@1")), target, "whitened")
    assert rows["cosine_cov"].scores.value == pytest.approx(expected)
    for row in rows.values():
        low, high = row.scores.ceiling
        assert 0.5 < low == high < 1
        assert f"| {low:.3f} |" in " ".join(found.markdown().split())
    assert cb.Comparison.load(found.save(tmp_path / "out")).summary == found.summary
    for given in (mine, cb.Recordings.from_rdm(rdms(1)[0], pixels(), region="IT")):
        with pytest.raises(ValueError, match="needs recordings with single repeats"):
            scored(given, "cosine_cov")


def folder_of_rdm(folder: Path) -> Path:
    folder.mkdir()
    for number, picture in enumerate(pixels()):
        (folder / f"{number:02d}.png").write_bytes(tiny.encoded(picture))
    np.save(folder / "it.npy", rdms(1)[0])
    with open(folder / "stimuli.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "face"], *([f"{number:02d}.png", "0"] for number in range(N))])
    return folder / "it.npy"


def test_a_file_of_dissimilarities(tmp_path: Path) -> None:
    path = folder_of_rdm(tmp_path / "it")
    read = cb.load_recordings(path, region="IT")
    assert isinstance(read, cb.Recordings)
    np.testing.assert_array_equal(np.asarray(read.rdms), rdms(1))
    assert read.images.ids[:2] == ("00", "01")
    with pytest.raises(ValueError, match="does not name its region"):
        cb.load_recordings(path)
    (path.parent / "stimuli.csv").write_text("file\n00.png\n")
    with pytest.raises(ValueError, match=r"stimuli.csv cannot be read as a list of images .*column image"):
        cb.load_recordings(path, region="IT")
    (path.parent / "stimuli.csv").unlink()
    with pytest.raises(FileNotFoundError):
        cb.load_recordings(path, region="IT")


@pytest.mark.parametrize(
    ("rdm", "message"),
    [
        (np.zeros((N, N - 1)), r"shape \(40, 39\), expected \(40, 40\)"),
        (np.ones((N, N)), "symmetric, with a diagonal of 0"),
        (np.triu(np.ones((N, N)), 1), "symmetric, with a diagonal of 0"),
        (np.full((N, N), "a"), "not numbers"),
    ],
)
def test_matrices_that_are_no_dissimilarities(rdm: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cb.Recordings.from_rdm(rdm, pixels(), region="IT")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": "rdm"}, "metric 'rdm'"),
        ({"metric": ()}, "expected one or several names"),
        ({"metric": ("rsa", "rsa")}, "each once"),
        ({"metric": "ridge", "components": 10}, "components = 10 is a setting of pls"),
        ({"metric": ("rsa", "cka"), "per_site": True}, "per_site = True is a setting of pls"),
        ({"metric": ("ridge", "cka"), "select": "nested"}, "cka use no training images"),
        ({"metric": ("ridge", "cka"), "select": "animal"}, "cka use no training images and no single sites"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cb.Scoring(**given)


def test_recordings_that_do_not_fit() -> None:
    given = cb.Recordings.from_rdm(rdms(), pixels(), region="IT", source="fMRI")
    with pytest.raises(ValueError, match="fMRI holds dissimilarities alone, and ridge predict"):
        scored(given, ("ridge", "rsa"))
    few = cb.Recordings.from_arrays(recordings().responses[:19], pixels()[:19], region="V4")
    with pytest.raises(ValueError, match="19 images are too few for rsa"):
        scored(few, "rsa")
    assert check_scoring(recordings(), cb.Scoring(metric="rsa")) == ()


def test_cka_between_layers() -> None:
    network = tiny.network(size=16)
    found = layer_cka((network, ["pool2@0", "pool2@1"]), (network, ["pool2@1"]), pixels(), progress=False)
    assert found.shape == (2, 1)
    assert found[1, 0] == pytest.approx(1.0)
    expected = similarity(dissimilarities(k_of("pool2@0")), dissimilarities(k_of("pool2@1")), "cka")
    assert found[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize(("metric", "test"), [("pls", "permutation over images"), ("rsa", "bootstrap over images")])
def test_sources_of_the_same_images_are_not_more_images(metric: str, test: str) -> None:
    """A recording under two names says no more than under one."""

    def pooled(*seeds: int) -> Any:
        sources = [recordings(seed, f"s{number}") for number, seed in enumerate(seeds)]
        return next(e for e in reversed(scored(sources, metric).evaluations) if e.comparison is not None)

    alone, twice, more = pooled(0), pooled(0, 0), pooled(0, 1)
    assert (alone.n_images, twice.n_images, more.n_images) == (N, N, 2 * N)
    p, q = ([t.p for t in e.comparison.tests if t.name == test] for e in (alone, twice))
    assert p == pytest.approx(q)
    assert len(p) == 1
    if metric == "rsa":
        assert (twice.scores.low, twice.scores.high) == pytest.approx((alone.scores.low, alone.scores.high))


def test_sources_that_share_some_images_exchange_these_alike() -> None:
    """So n counts each image once."""
    first, second = np.arange(N), np.arange(N // 2, N + N // 2)
    pictures, values = tiny.pictures(2 * N, size=16), np.random.default_rng(0).standard_normal((2 * N, 3))
    sources = [
        cb.Recordings.from_arrays(
            values[rows], pictures[rows], region="V4", source=f"s{number}", image_ids=[*map(str, rows)]
        )
        for number, rows in enumerate((first, second))
    ]
    pooled = next(e for e in reversed(scored(sources, "pls").evaluations) if e.comparison is not None)
    assert pooled.n_images == N + N // 2
    test = next(t for t in pooled.comparison.tests if t.name == "permutation over images")
    assert test.n == N + N // 2
