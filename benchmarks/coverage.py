"""How often the intervals of ceilings hold the truth, and how often tests over animals find a difference where there is none.

    python benchmarks/coverage.py ceilings --experiments 1000
    python benchmarks/coverage.py animals --experiments 500

Each writes its table into docs/results/rejection-rates.md (minutes on one core, with OMP_NUM_THREADS=1; --output takes another
docs folder).

Ceilings: one site is one experiment. Animals: predictions of two networks are drawn, not fitted; null_rates.py measures
what fitting adds. Each network is better at one half of a signal. Each animal weighs the halves by 1 + g and 1 - g, with a
normal g of its own. So every animal has its own true difference, and their population has none.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from null_rates import write_table
from scipy import stats

from cnnf_brain.predictivity.ceilings import Ceiling, explained_r2, reliability
from cnnf_brain.predictivity.hierarchy import HIERARCHICAL, t_over_animals
from cnnf_brain.predictivity.permutation import PERMUTATION, HeldOut, permutation_over_images
from cnnf_brain.predictivity.scores import pearson
from cnnf_brain.types import Split

BOOTSTRAP = "bootstrap of animals and their sessions"
N_IMAGES, N_SITES, N_SIGNAL = 60, 8, 16
SPLIT = Split(np.arange(100 * N_IMAGES), np.arange(N_IMAGES))  # predictors are given: training adds nothing
RESAMPLES = 199


class Animals(NamedTuple):
    """One kind of experiment; ``spread``: standard deviation of g."""

    title: str
    animals: int
    sessions: int = 1
    spread: float = 0.5
    shared: bool = False  # all sessions show the same images


SETTINGS = (
    Animals("2 animals", 2, sessions=2),
    Animals("3 animals", 3, sessions=2),
    Animals("6 animals", 6),
    Animals("2 equal animals", 2, spread=0.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("ceilings", "animals"))
    parser.add_argument("--experiments", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs")
    options = parser.parse_args()
    made = (ceilings if options.what == "ceilings" else animals)(options.experiments, options.seed)
    write_table(options.output / "results" / "rejection-rates.md", made, options.what)


def ceilings(n: int, seed: int) -> str:
    """Coverage of both intervals: images, repeats and noise in rows, reliabilities in columns."""
    lines = [
        "| images, repeats, noise | "
        + " | ".join(f"{what} {x}" for what in ("reliability", "r² at") for x in (0.3, 0.6, 0.9))
        + " |"
    ]
    lines.append("|---" * 7 + "|")
    for images, repeats, kind in [
        (n, k, kind) for n, k in ((64, 4), (200, 2), (200, 8)) for kind in ("normal", "unequal", "counts")
    ]:
        found = [
            covered(images, repeats, kind, share, n, np.random.default_rng([seed, images, repeats]))
            for share in (0.3, 0.6, 0.9)
        ]
        rates = [f"{100 * rate:.1f}%" for part in zip(*found, strict=True) for rate in part]
        lines.append(f"| {images}, {repeats}, {kind} | {' | '.join(rates)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def covered(images: int, k: int, kind: str, share: float, n: int, rng: np.random.Generator) -> tuple[float, float]:
    """How often both intervals hold the truth, for sites of reliability ``share``; over sites that have an interval."""
    counts, there = np.zeros(2), np.zeros(2)
    for start in range(0, n, 200):
        sites = min(200, n - start)
        signal = np.exp(0.4 * rng.standard_normal((images, sites)))  # skewed, as responses over images are
        signal = (signal - signal.mean(axis=0)) / signal.std(axis=0, ddof=1)
        variance = np.full(signal.shape, k * (1 - share) / share)
        shape = (images, sites, k)
        if kind == "counts":  # Poisson; the rate is at least a fifth of its mean, which sets the scale of the signal
            depth = 0.8 / -signal.min(axis=0)
            rate = share / (1 - share) / k / depth**2
            signal, variance = rate * depth * signal, rate * (1 + depth * signal)
            repeats = rng.poisson(variance[..., None], shape).astype(float)
        else:
            variance = variance * (np.linspace(0.2, 1.8, images)[:, None] if kind == "unequal" else 1.0)
            repeats = signal[..., None] + np.sqrt(variance)[..., None] * rng.standard_normal(shape)
        z = signal / signal.std(axis=0)
        predictions = z + rng.standard_normal(z.shape)
        truth = signal.var(axis=0, ddof=1)
        r = ((predictions - predictions.mean(axis=0)) * z).mean(axis=0) / predictions.std(axis=0)
        for number, (found, true) in enumerate(
            ((reliability(repeats), truth / (truth + variance.mean(axis=0) / k)), (explained_r2(predictions, repeats), r**2))
        ):
            counts[number] += inside(found, true)
            there[number] += np.isfinite(found.low).sum()
    return counts[0] / there[0], counts[1] / there[1]


def inside(found: Ceiling, true: np.ndarray) -> int:
    return int(np.sum((found.low <= true) & (true <= found.high)))


def animals(n: int, seed: int) -> str:
    """Rejections of no difference in the population of animals, at 5%, with their standard errors."""
    names = (HIERARCHICAL, BOOTSTRAP, PERMUTATION)
    columns = {}
    for number, setting in enumerate(SETTINGS):
        found = [rejections(setting, np.random.default_rng([seed, number, index]), index) for index in range(n)]
        columns[setting.title] = np.mean(found, axis=0)
        print(setting.title, dict(zip(names, columns[setting.title], strict=True)), flush=True)
    lines = ["| test | " + " | ".join(columns) + " | holds its level for new animals |", "|---" * (len(columns) + 2) + "|"]
    for row, name in enumerate(names):
        rates = [rate[row] for rate in columns.values()]
        bad = [stats.binomtest(round(rate * n), n).proportion_ci(0.95).low > 0.05 for rate in rates]
        cells = [
            f"{'**' * b}{100 * r:.1f}%{'**' * b} (± {100 * np.sqrt(r * (1 - r) / n):.1f})"
            for r, b in zip(rates, bad, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {'no' if any(bad) else 'yes'} |")
    return "\n".join(lines)


def rejections(setting: Animals, rng: np.random.Generator, seed: int) -> list[bool]:
    """Whether each test calls the networks different, in one experiment."""
    images, sources, labels, medians = drawn_images(rng), [], [], []
    for animal in range(setting.animals):
        g, own = setting.spread * rng.standard_normal(), []
        for _ in range(setting.sessions):
            signal, features = images if setting.shared else drawn_images(rng)
            weights = rng.standard_normal((N_SIGNAL, N_SITES)) * np.repeat([1 + g, 1 - g], N_SIGNAL // 2)[:, None]
            clean = signal @ weights
            responses = clean / clean.std(axis=0) + 0.7 * rng.standard_normal(clean.shape)
            sources.append(HeldOut([features[0] @ weights], [features[1] @ weights], responses, [SPLIT]))
            labels.append(np.full(N_SITES, str(animal)))
            own.append(median_difference(sources[-1]))
        medians.append(own)
    named = [0] * len(sources) if setting.shared else None
    t = t_over_animals(sources, labels, images=named, n_resamples=RESAMPLES, seed=seed)
    pooled = permutation_over_images(sources, n_resamples=RESAMPLES, seed=seed)
    low, high = np.quantile(resampled_means(np.array(medians), rng), [0.025, 0.975])
    return [t.p <= 0.05, not low <= 0 <= high, pooled.p <= 0.05]


def drawn_images(rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Signal of the images, and what each network has of it: one half with more noise than the other."""
    signal = rng.standard_normal((N_IMAGES, N_SIGNAL))
    noise = np.repeat([0.4, 0.8], N_SIGNAL // 2)
    return signal, [signal + size * rng.standard_normal(signal.shape) for size in (noise, noise[::-1])]


def median_difference(source: HeldOut) -> float:
    """Median over sites of the difference in r."""
    return float(np.median(pearson(source.model[0], source.responses) - pearson(source.baseline[0], source.responses)))


def resampled_means(medians: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means over animals drawn with replacement, of their sessions drawn with replacement."""
    n, sessions = medians.shape
    chosen = rng.integers(0, n, (2000, n))
    of_session = rng.integers(0, sessions, (2000, n, sessions))
    return medians[chosen[..., None], of_session].mean(axis=(1, 2))


if __name__ == "__main__":
    main()
