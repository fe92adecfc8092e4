"""How often each test of ``cnnf_brain.predictivity.statistics`` calls two equally good networks different.

    python benchmarks/null_rates.py --experiments 1000 --seed 0

writes docs/results/null-rates.json and the table in docs/statistics.md (several minutes on one core, with
OMP_NUM_THREADS=1; --output takes another docs folder).

One experiment: images have a latent signal; the features of both networks are that signal plus noise of the same
distribution, drawn per image and network; sites are linear readouts of the signal plus noise. Exact PLS is
cross-validated for both and the two are compared by all tests at their nominal 5%. Each experiment draws everything
anew, so for "new images" the networks are equally good at every site (or, in one setting, over the sites). For
"new sites" the images and features are drawn once, and each experiment draws other sites of the same population;
there the hypothesis is the median difference of all sites of all experiments.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from cnnf_brain.io import atomic_path
from cnnf_brain.predictivity import statistics
from cnnf_brain.predictivity.permutation import PERMUTATION, HeldOut, permutation_over_images
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.predictivity.scores import score_predictions
from cnnf_brain.predictivity.statistics import BOOTSTRAP, PAIRED, RESAMPLED, TESTS, WELCH, WILCOXON
from cnnf_brain.types import Predictions, Scores, Split

PLAIN_PERMUTATION = "permutation over images, uncorrected"
ROWS = (RESAMPLED, PERMUTATION, PLAIN_PERMUTATION, WELCH, PAIRED, WILCOXON, BOOTSTRAP)
LEVEL = 0.05
RESAMPLES = 999


@dataclass(frozen=True)
class Setting:
    """Sizes and noise of one kind of experiment; standard deviations, the signal's first dimension having 1."""

    title: str
    n_images: int = 160
    n_sites: int = 30
    n_features: int = 80
    n_components: int = 15
    shuffle: bool = False  # ten random 90/10 splits, as Brain-Score, instead of ten folds
    model_noise: float = 0.5  # of a feature
    baseline_noise: float = 0.5
    site_noise: float = 0.7
    shared: float = 0.0  # the share of site noise (variance) common to all sites
    mirrored: bool = True  # sites in pairs that read the halves of the signal the other way round
    contrast: float = 1.0  # > 1: each network is better at one half of the signal, and so at some of the sites


N_SIGNAL = 16
SETTINGS = (
    Setting("ten folds"),
    Setting("ten shuffle splits", shuffle=True),
    Setting("64 images", n_images=64),
    Setting("noise shared by sites", shared=0.6),
    Setting("weak features", model_noise=1.5, baseline_noise=1.5),
    Setting("two components", n_components=2),
    Setting("each better at half the sites", contrast=2.0),
)
POWER = Setting("power", n_images=100, baseline_noise=0.6)
NEW_SITES = Setting("new sites", mirrored=False)  # independent sites


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs")
    options = parser.parse_args()
    began = time.perf_counter()
    results = []
    for number, setting in enumerate((*SETTINGS, POWER)):
        results.append(measure(setting, options.experiments, (options.seed, number)))
        report_progress(results[-1], time.perf_counter() - began)
    results.append(measure_new_sites(NEW_SITES, options.experiments, (options.seed, len(results))))
    report_progress(results[-1], time.perf_counter() - began)
    record = {"experiments": options.experiments, "seed": options.seed, "level": LEVEL, "settings": results}
    with atomic_path(options.output / "results" / "null-rates.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    write_table(options.output / "statistics.md", table(record))


def measure(setting: Setting, n: int, seed: tuple[int, ...]) -> dict:
    """Numbers of rejections of the null of no difference, over n experiments."""
    counts = dict.fromkeys(ROWS, 0)
    r, differences = [], []
    for index in range(n):
        experiment = draw(setting, np.random.default_rng([*seed, index]))
        rejected = rejections(experiment, index)
        for name in ROWS:
            counts[name] += rejected[name]
        differences.append(np.median((experiment.model.r - experiment.baseline.r).mean(axis=0)))
        r.append(np.median(experiment.model.r.mean(axis=0)))
    return record_of(setting, n, counts, r, differences)


def measure_new_sites(setting: Setting, n: int, seed: tuple[int, ...]) -> dict:
    """Tests over sites, for the same images and features and each time other sites; shifted to the null."""
    images = draw_images(setting, np.random.default_rng(seed))
    drawn = []
    for index in range(n):
        one = draw_sites(setting, images, np.random.default_rng([*seed, index]))
        drawn.append((one.model.r, one.baseline.r))
    differences = np.array([(model - baseline).mean(axis=0) for model, baseline in drawn])
    true = float(np.median(differences))
    counts = dict.fromkeys((PAIRED, WILCOXON, BOOTSTRAP), 0)
    for index, (model, baseline) in enumerate(drawn):
        counts[PAIRED] += statistics.paired_t_over_sites(model - true, baseline).p <= LEVEL
        counts[WILCOXON] += statistics.wilcoxon_over_sites(model - true, baseline).p <= LEVEL
        low, high = statistics.bootstrap_median_difference(model - true, baseline, n_resamples=RESAMPLES, seed=index)
        counts[BOOTSTRAP] += not low <= 0 <= high
    r = [np.median(model.mean(axis=0)) for model, _ in drawn]
    return record_of(setting, n, counts, r, list(np.median(differences, axis=1)))


@dataclass(frozen=True)
class Experiment:
    model: Scores
    baseline: Scores
    predictions: tuple[Predictions, Predictions]
    responses: np.ndarray


@dataclass(frozen=True)
class DrawnImages:
    signal: np.ndarray
    grams: tuple[np.ndarray, np.ndarray]
    splits: tuple[Split, ...]


def draw(setting: Setting, rng: np.random.Generator) -> Experiment:
    return draw_sites(setting, draw_images(setting, rng), rng)


def draw_images(setting: Setting, rng: np.random.Generator) -> DrawnImages:
    """Signal, the Grams X Xᵀ of both networks, and splits."""
    half = N_SIGNAL // 2
    size = np.tile(1 / np.sqrt(1 + np.arange(half) / 3), 2)
    signal = rng.standard_normal((setting.n_images, N_SIGNAL)) * size
    contrast = np.repeat([setting.contrast, 1 / setting.contrast], half)
    grams = []
    for noise, factor in ((setting.model_noise, contrast), (setting.baseline_noise, contrast[::-1])):
        features = noise * rng.standard_normal((setting.n_images, setting.n_features))
        features[:, :N_SIGNAL] = features[:, :N_SIGNAL] * factor + signal
        grams.append(features @ features.T)
    return DrawnImages(signal, (grams[0], grams[1]), draw_splits(setting, rng))


def draw_splits(setting: Setting, rng: np.random.Generator) -> tuple[Split, ...]:
    rows = np.arange(setting.n_images)
    if setting.shuffle:
        tests = [rng.permutation(rows)[: round(setting.n_images / 10)] for _ in range(10)]
    else:
        tests = np.array_split(rng.permutation(rows), 10)
    return tuple(Split(np.setdiff1d(rows, test), test) for test in tests)


def draw_sites(setting: Setting, images: DrawnImages, rng: np.random.Generator) -> Experiment:
    """Responses of sites drawn from one population, and both networks' cross-validated predictions of them.

    Where the networks differ in the halves of the signal, mirrored sites make the differences over sites symmetric
    around 0.
    """
    readout = rng.standard_normal((N_SIGNAL, setting.n_sites // (2 if setting.mirrored else 1)))
    if setting.mirrored:
        readout = np.hstack([readout, np.roll(readout, N_SIGNAL // 2, axis=0)])
    clean = images.signal @ readout
    own, common = rng.standard_normal(clean.shape), rng.standard_normal((setting.n_images, 1))
    noise = np.sqrt(1 - setting.shared) * own + np.sqrt(setting.shared) * common
    responses = clean / clean.std(axis=0) + setting.site_noise * noise
    model, baseline = (cross_predict(gram, responses, images.splits, setting.n_components) for gram in images.grams)
    scores = [score_predictions(one, responses) for one in (model, baseline)]
    return Experiment(scores[0], scores[1], (model, baseline), responses)


def rejections(experiment: Experiment, seed: int) -> dict[str, bool]:
    comparison = statistics.compare_scores(
        [(experiment.model, experiment.baseline)],
        predictions=[experiment.predictions],
        responses=[experiment.responses],
        n_resamples=RESAMPLES,
        seed=seed,
    )
    rejected = {test.name: test.p <= LEVEL for test in comparison.tests}
    model, baseline = ([values[-1] for values in one.values] for one in experiment.predictions)
    held_out = HeldOut(model, baseline, experiment.responses, experiment.predictions[0].splits)
    plain = permutation_over_images([held_out], for_training=False, n_resamples=RESAMPLES, seed=seed)
    return {
        **rejected,
        PLAIN_PERMUTATION: plain.p <= LEVEL,
        BOOTSTRAP: not comparison.sites_low <= 0 <= comparison.sites_high,
    }


def record_of(setting: Setting, n: int, counts: dict[str, int], r: list, differences: list) -> dict:
    return {
        "setting": asdict(setting),
        "median_r": float(np.mean(r)),
        "mean_difference": float(np.mean(differences)),
        "rejections": {name: int(count) for name, count in counts.items()},
        "experiments": n,
    }


def report_progress(result: dict, seconds: float) -> None:
    rates = ", ".join(f"{name} {count / result['experiments']:.1%}" for name, count in result["rejections"].items())
    print(f"[{seconds:.0f} s] {result['setting']['title']} (median r {result['median_r']:.2f}): {rates}", flush=True)


def exceeds(count: int, n: int, level: float = LEVEL) -> bool:
    """Whether count rejections in n experiments are more than ``level`` beyond sampling error (exact, 95%)."""
    return bool(stats.binomtest(count, n).proportion_ci(0.95).low > level)


def cell(result: dict, name: str) -> str:
    """``4.1% (3.0–5.5)``: the rate and its exact 95% interval, bold where that lies above the level."""
    if name not in result["rejections"]:
        return "–"
    count, n = result["rejections"][name], result["experiments"]
    low, high = stats.binomtest(count, n).proportion_ci(0.95)
    rate = f"{100 * count / n:.1f}%"
    return f"{f'**{rate}**' if exceeds(count, n) else rate} ({100 * low:.1f}–{100 * high:.1f})"


def table(record: dict) -> str:
    """Markdown: tests in rows, settings in columns, and whether the rates let the test be called valid."""
    *nulls, power, sites = record["settings"]
    titles = [one["setting"]["title"] for one in nulls]
    lines = [
        "| test | " + " | ".join(titles) + " | valid for new images | other sites, same images | power |",
        "|---" * (len(titles) + 4) + "|",
    ]
    for name in ROWS:
        bad = any(exceeds(one["rejections"][name], one["experiments"]) for one in nulls)
        rates = " | ".join(cell(one, name) for one in nulls)
        power_rate = "–" if bad else cell(power, name).replace("**", "")
        lines.append(f"| {name} | {rates} | {'no' if bad else 'yes'} | {cell(sites, name)} | {power_rate} |")
        if not bad and name in TESTS and not TESTS[name].valid:
            print(f"note: {name} stayed within 5% here, though TESTS calls it invalid")
        if bad and name in TESTS and TESTS[name].valid:
            print(f"WARNING: {name} exceeds 5%, though TESTS calls it valid")
    return "\n".join(lines)


def write_table(path: Path, text: str) -> None:
    """Put the table between the marks of the document."""
    before, start, rest = path.read_text().partition("<!-- null rates -->\n")
    _, end, after = rest.partition("<!-- end of null rates -->")
    if not (start and end):
        raise ValueError(f"{path} lacks the marks <!-- null rates --> and <!-- end of null rates -->")
    with atomic_path(path) as temporary:
        temporary.write_text(before + start + text + "\n" + end + after)


if __name__ == "__main__":
    main()
