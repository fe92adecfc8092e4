"""How often each test of ``cnnf_brain.predictivity.statistics`` calls two equally good networks different.

    python benchmarks/null_rates.py --experiments 1000 --seed 0

writes docs/results/null-rates.json and the table in docs/results/rejection-rates.md (several minutes on one core, with
OMP_NUM_THREADS=1; --output takes another docs folder).

    python benchmarks/null_rates.py --part similarity --experiments 200 --seed 0

does the same for the bootstrap over images of ``predictivity.similarity``, by which RSA, CKA and the whitened cosine of two
networks are compared. It writes docs/results/null-rates-similarity.json and the second table of docs/results/rejection-rates.md.
The networks and sites are those of the settings that do not speak of PLS or splits, with fewer images.

One experiment: images have a latent signal; the features of both networks are that signal plus noise of the same
distribution, drawn per image and network; sites are linear readouts of the signal plus noise. Exact PLS is
cross-validated for both and the two are compared by all tests at their nominal 5%. Each experiment draws everything
anew, so for "new images" the networks are equally good at every site (or, in one setting, over the sites). For
"new sites" the images and features are drawn once, and each experiment draws other sites of the same population;
there the hypothesis is the median difference of all sites of all experiments.

    python benchmarks/null_rates.py --part unique --experiments 200

measures the same for what a second feature space explains beyond a first one (unique variance), where it explains
nothing: results in docs/results/null-rates-unique.json and the third table. The sites are the same in all experiments, so that
each has a true unique variance, the mean over experiments: the table says how often its interval holds it.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from cnnf_brain.io import atomic_path
from cnnf_brain.predictivity import statistics
from cnnf_brain.predictivity.kernel import mean_eigenvalue
from cnnf_brain.predictivity.metrics import METRICS
from cnnf_brain.predictivity.permutation import PERMUTATION, HeldOut, permutation_over_images
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.predictivity.ridge import GridEndWarning, unique_variance
from cnnf_brain.predictivity.scores import score_predictions
from cnnf_brain.predictivity.statistics import BOOTSTRAP, OVER_IMAGES, PAIRED, RESAMPLED, TESTS, WELCH, WILCOXON
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
    n_splits: int = 10


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
AGREEMENTS = ("rsa", "cka", "cosine_cov")
WITHOUT_FITS = (  # neither splits nor components are used
    *(replace(one, n_images=64) for one in (SETTINGS[2], *SETTINGS[3:5], SETTINGS[6])),
    replace(POWER, n_images=64, baseline_noise=0.8),
)


@dataclass(frozen=True)
class Second:
    """Features beside the first ones: a noisy copy of those, unrelated noise, or another view of the signal."""

    title: str
    kind: str
    n_features: int = 80


UNIQUE = Setting("unique variance", n_images=200, n_splits=5)
SECONDS = (
    Second("noisy copy", "copy"),
    Second("unrelated noise", "noise"),
    Second("noisy mixture, 4 times the features", "copy", 320),
    Second("unrelated noise, 4 times the features", "noise", 320),
    Second("another view of the signal", "view"),  # power: it does explain more
)
PENALTIES = np.logspace(-2, 2, 5)  # over the mean eigenvalue: fewer than by default, for time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=PARTS, default="networks")
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs")
    options = parser.parse_args()
    PARTS[options.part](options)


def networks(options: argparse.Namespace) -> None:
    """The tests of r of two networks."""
    began, results = time.perf_counter(), []
    for number, setting in enumerate((*SETTINGS, POWER)):
        results.append(measure(setting, options.experiments, (options.seed, number)))
        report_progress(results[-1], time.perf_counter() - began)
    results.append(measure_new_sites(NEW_SITES, options.experiments, (options.seed, len(results))))
    report_progress(results[-1], time.perf_counter() - began)
    write(options, recorded(options, results), "null-rates.json", "null rates", table)


def similarity(options: argparse.Namespace) -> None:
    """The bootstrap over images of RSA, CKA and the whitened cosine."""
    began, results = time.perf_counter(), []
    for number, setting in enumerate(WITHOUT_FITS):
        results.append(measure_similarity(setting, options.experiments, (options.seed, number)))
        report_progress(results[-1], time.perf_counter() - began)
    write(options, recorded(options, results), "null-rates-similarity.json", "similarity null rates", similarity_table)


def recorded(options: argparse.Namespace, results: list[dict]) -> dict:
    """The results with what they were made from."""
    return {"experiments": options.experiments, "seed": options.seed, "level": LEVEL, "settings": results}


def write(options: argparse.Namespace, record: dict, name: str, mark: str, made: Callable[[dict], str]) -> None:
    """The numbers as JSON and the table of docs/results/rejection-rates.md."""
    with atomic_path(options.output / "results" / name) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    write_table(options.output / "results" / "rejection-rates.md", made(record), mark)


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


def measure_similarity(setting: Setting, n: int, seed: tuple[int, ...]) -> dict:
    """Numbers of rejections by the bootstrap over images, of RSA, CKA and (of sites with two repeats) the whitened cosine."""
    counts, values = dict.fromkeys(AGREEMENTS, 0), []
    for index in range(n):
        rng = np.random.default_rng([*seed, index])
        images = draw_images(setting, rng)
        responses = draw_responses(setting, images, rng)
        rng = np.random.default_rng([*seed, index, 1])
        readout = draw_readout(setting, rng)
        repeats = np.stack([draw_responses(setting, images, rng, readout) for _ in range(2)], axis=2)
        for name in AGREEMENTS:
            metric = METRICS[name]
            target = metric.target(responses, repeats)
            pair = tuple(metric.scored(gram, [target], index) for gram in images.grams)
            found = metric.compare([pair], [responses], index)
            counts[name] += found.tests[0].p <= LEVEL
            if name == "rsa":
                values.append(pair[0].value)
    rejections = {name: int(count) for name, count in counts.items()}
    rsa = round(float(np.mean(values)), 2)
    return {"setting": asdict(setting), "mean_rsa": rsa, "rejections": rejections, "experiments": n}


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
    features: tuple[np.ndarray, np.ndarray]
    splits: tuple[Split, ...]

    @cached_property
    def grams(self) -> tuple[np.ndarray, ...]:
        """X Xᵀ of both networks; made once, where other sites are drawn for the same images."""
        return tuple(features @ features.T for features in self.features)


def draw(setting: Setting, rng: np.random.Generator) -> Experiment:
    return draw_sites(setting, draw_images(setting, rng), rng)


def draw_images(setting: Setting, rng: np.random.Generator) -> DrawnImages:
    """Signal, the features of both networks, and splits."""
    half = N_SIGNAL // 2
    size = np.tile(1 / np.sqrt(1 + np.arange(half) / 3), 2)
    signal = rng.standard_normal((setting.n_images, N_SIGNAL)) * size
    contrast = np.repeat([setting.contrast, 1 / setting.contrast], half)
    found = []
    for noise, factor in ((setting.model_noise, contrast), (setting.baseline_noise, contrast[::-1])):
        features = noise * rng.standard_normal((setting.n_images, setting.n_features))
        features[:, :N_SIGNAL] = features[:, :N_SIGNAL] * factor + signal
        found.append(features)
    return DrawnImages(signal, (found[0], found[1]), draw_splits(setting, rng))


def draw_splits(setting: Setting, rng: np.random.Generator) -> tuple[Split, ...]:
    rows = np.arange(setting.n_images)
    if setting.shuffle:
        tests = [rng.permutation(rows)[: round(setting.n_images / 10)] for _ in range(10)]
    else:
        tests = np.array_split(rng.permutation(rows), setting.n_splits)
    return tuple(Split(np.setdiff1d(rows, test), test) for test in tests)


def draw_sites(setting: Setting, images: DrawnImages, rng: np.random.Generator) -> Experiment:
    """Responses of sites, and both networks' cross-validated predictions of them."""
    responses = draw_responses(setting, images, rng)
    model, baseline = (cross_predict(gram, responses, images.splits, setting.n_components) for gram in images.grams)
    scores = [score_predictions(one, responses) for one in (model, baseline)]
    return Experiment(scores[0], scores[1], (model, baseline), responses)


def draw_readout(setting: Setting, rng: np.random.Generator) -> np.ndarray:
    """Weights (n_signal, n_sites) of sites drawn from one population.

    Where the networks differ in the halves of the signal, mirrored sites make the differences over sites symmetric
    around 0.
    """
    readout = rng.standard_normal((N_SIGNAL, setting.n_sites // (2 if setting.mirrored else 1)))
    return np.hstack([readout, np.roll(readout, N_SIGNAL // 2, axis=0)]) if setting.mirrored else readout


def draw_responses(
    setting: Setting, images: DrawnImages, rng: np.random.Generator, readout: np.ndarray | None = None
) -> np.ndarray:
    """Responses of the sites of ``readout``, or of newly drawn ones."""
    clean = images.signal @ (draw_readout(setting, rng) if readout is None else readout)
    own, common = rng.standard_normal(clean.shape), rng.standard_normal((setting.n_images, 1))
    noise = np.sqrt(1 - setting.shared) * own + np.sqrt(setting.shared) * common
    responses: np.ndarray = clean / clean.std(axis=0) + setting.site_noise * noise
    return responses


RIDGE, PLS = "banded ridge", "PLS on the sum"
SITES_RIDGE = "intervals of single sites, banded ridge"
COVERED = "coverage of those intervals"


def measure_unique(options: argparse.Namespace) -> None:
    """Of each kind of second features and each test: how often it rejects, and how often in favour of the second."""
    warnings.simplefilter("ignore", GridEndWarning)
    began, found = time.perf_counter(), {second.title: [] for second in SECONDS}
    for index in range(options.experiments):  # all kinds in turn, so that an early end leaves a result
        for number, second in enumerate(SECONDS):
            found[second.title].append(
                unique_experiment(second, np.random.default_rng([options.seed, number, index]), index)
            )
        if (index + 1) % 20 == 0 or index + 1 == options.experiments:
            settings = [{"second": asdict(second), **summed(found[second.title])} for second in SECONDS]
            record = {**recorded(options, settings), "experiments": index + 1, "first": asdict(UNIQUE)}
            write(options, record, "null-rates-unique.json", "unique null rates", unique_table)
            print(f"[{time.perf_counter() - began:.0f} s] {index + 1} experiments of each kind", flush=True)


def unique_experiment(second: Second, rng: np.random.Generator, seed: int) -> dict[str, Any]:
    """For each test whether it rejects at all, and in favour of the second; of single sites' intervals the share that does, and
    unique variance, low and high (3, n_sites)."""
    images = draw_images(UNIQUE, rng)
    first, view = images.features
    noise = rng.standard_normal((UNIQUE.n_images, second.n_features))
    mixing = np.eye(len(first.T))
    if second.n_features != len(mixing):
        mixing = rng.standard_normal((len(mixing), second.n_features)) / np.sqrt(len(mixing))
    other = {"copy": first @ mixing + 0.5 * noise, "noise": noise, "view": view}[second.kind]
    responses = draw_responses(UNIQUE, images, rng, draw_readout(UNIQUE, np.random.default_rng(0)))
    grams = [features @ features.T for features in (first, other)]
    size = mean_eigenvalue(grams[0])
    grams[1] *= size / mean_eigenvalue(grams[1])
    ridge = unique_variance(*grams, responses, images.splits, penalties=size * PENALTIES, n_resamples=RESAMPLES, seed=seed)
    both, alone = (cross_predict(gram, responses, images.splits, UNIQUE.n_components) for gram in (sum(grams), grams[0]))
    tests = statistics.compare_scores(
        [(score_predictions(both, responses), score_predictions(alone, responses))],
        predictions=[(both, alone)],
        responses=[responses],
        n_resamples=RESAMPLES,
        seed=seed,
    ).tests
    named = {
        f"{PERMUTATION}, {RIDGE}": ridge.test,
        **{f"{test.name}, {PLS}": test for test in tests if TESTS[test.name].valid},
    }
    outcome = {name: (float(t.p <= LEVEL), float(t.p <= LEVEL and t.statistic > 0)) for name, t in named.items()}
    outcome[SITES_RIDGE] = float(np.mean((ridge.low > 0) | (ridge.high < 0))), float(np.mean(ridge.low > 0))
    outcome["unique r2"] = float(np.median(ridge.unique)), float(np.median(ridge.first))
    return {**outcome, COVERED: np.array([ridge.unique, ridge.low, ridge.high])}


def summed(outcomes: list[dict[str, Any]]) -> dict:
    """Mean and standard error over experiments, of both numbers of each test; of intervals the share that holds the truth, the
    share that lies below it, and the share of sites without one."""
    unique, low, high = np.moveaxis([one[COVERED] for one in outcomes], 1, 0)
    true, there = unique.mean(axis=0), np.isfinite(low)
    shares = [(one.sum(axis=1) / there.sum(axis=1)) for one in ((low <= true) & (true <= high), high < true)]
    covered = {COVERED: np.transpose([*shares, 1 - there.mean(axis=1)])}
    found = {}
    for name in outcomes[0]:
        values = np.array(covered.get(name, [one[name] for one in outcomes]))
        found[name] = {"mean": values.mean(axis=0).tolist(), "error": (values.std(axis=0) / np.sqrt(len(values))).tolist()}
    return found


def unique_table(record: dict) -> str:
    """Markdown: tests in rows, kinds of second features in columns; rejections in favour of the second, and of either sign."""
    settings = record["settings"]
    titles = [one["second"]["title"] for one in settings]
    lines = ["| test | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for name in [name for name in settings[0] if name not in ("second", "unique r2", COVERED)]:
        rates = [(100 * np.array(one[name]["mean"]), 100 * np.array(one[name]["error"])) for one in settings]
        cells = [f"{mean[1]:.1f}% ± {error[1]:.1f} ({mean[0]:.1f}%)" for mean, error in rates]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    covered = [(100 * np.array(one[COVERED]["mean"]), 100 * one[COVERED]["error"][0]) for one in settings]
    cells = [f"{mean[0]:.1f}% ± {error:.1f} ({mean[1]:.1f}%)" for mean, error in covered]
    lines.append(f"| {COVERED} (too low) | {' | '.join(cells)} |")
    lines.append("| sites without an interval | " + " | ".join(f"{mean[2]:.1f}%" for mean, _ in covered) + " |")
    unique = [one["unique r2"]["mean"] for one in settings]
    lines.append("| *median unique r² (r² of the first)* | " + " | ".join(f"{u:+.4f} ({r:.2f})" for u, r in unique) + " |")
    return "\n".join([*lines, "", f"{record['experiments']} experiments of each kind; ± the standard error."])


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
    size = f"median r {result['median_r']:.2f}" if "median_r" in result else f"mean RSA {result['mean_rsa']:.2f}"
    print(f"[{seconds:.0f} s] {result['setting']['title']} ({size}): {rates}", flush=True)


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


def similarity_table(record: dict) -> str:
    """Markdown: agreements in rows, settings in columns."""
    *nulls, power = record["settings"]
    titles = [*(one["setting"]["title"] for one in nulls), "power"]
    lines = ["| bootstrap over images | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for name in AGREEMENTS:
        cells = [*(cell(one, name) for one in nulls), cell(power, name).replace("**", "")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        if any(exceeds(one["rejections"][name], one["experiments"]) for one in nulls) and TESTS[OVER_IMAGES].valid:
            print(f"WARNING: {name} exceeds 5%, though TESTS calls the test valid")
    return "\n".join(lines)


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


def write_table(path: Path, text: str, mark: str) -> None:
    """Put the table between the marks of the document."""
    before, start, rest = path.read_text().partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- end of {mark} -->")
    if not (start and end):
        raise ValueError(f"{path} lacks the marks <!-- {mark} --> and <!-- end of {mark} -->")
    with atomic_path(path) as temporary:
        temporary.write_text(before + start + text + "\n" + end + after)


PARTS = {"networks": networks, "similarity": similarity, "unique": measure_unique}


if __name__ == "__main__":
    main()
