"""Exact PLS in sample space beside scikit-learn and ikpls: times, agreement in r and peak memory, in one run.

    python benchmarks/pls.py                      # everything, 15 to 30 minutes on two cores
    python benchmarks/pls.py --part wide          # one part: sklearn, ikpls, wide, converged, sites
    python benchmarks/pls.py --quick              # small sizes, to see that it runs; its ratios mean nothing

It needs ``benchmarks/requirements.txt`` (ikpls, numpy 2), the parts wide and sites do not. Every method runs in a process
of its own, on the same simulated recordings (low-rank float32 features with noise), one after the other; making
the data is not timed, taking them to float64 where a peer wants that is. ``results/benchmark-pls.json`` holds the numbers.

sklearn    one fold, 2304 x 25088 x 168: Gram, fit and prediction against PLSRegression(25, scale=False)
ikpls      ten folds of 2560 x 25088 x 168, everything included, against ikpls.numpy.PLS(algorithm=1) in float64
wide       ten folds of 2560 x 100352 x 168: from K, and with the Gram, against the bare product X Xᵀ
converged  the same fold against scikit-learn run to convergence (tol 1e-12), which is what r has to agree with
sites      ten folds of 4000 images x 800 sites from K (1000 x 400 with --quick), against the products that nothing can spare:
           one with K a component, and YᵀY of each fold. Predictions with all components alone, as ``compare`` takes them. CPU
           seconds of one thread: other programs beside it change these less, and threads that wait for each other count
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from cnnf_brain.io import atomic_path
from cnnf_brain.predictivity.crossval import make_splits
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.predictivity.scores import pearson
from cnnf_brain.types import Split

N_COMPONENTS = 25
BLOCK = 32768  # features in one float32 product
OUTPUT = Path(__file__).resolve().parents[1] / "results" / "benchmark-pls.json"
# images, features, sites, splits that are computed
SIZES = {
    "sklearn": (2560, 25088, 168, 1),
    "ikpls": (2560, 25088, 168, 10),
    "wide": (2560, 100352, 168, 10),
    "converged": (2560, 25088, 168, 1),
    "sites": (4000, 3000, 800, 10),
}
QUICK = {
    "sklearn": (400, 3000, 30, 1),
    "ikpls": (400, 3000, 30, 10),
    "wide": (400, 6000, 30, 10),
    "converged": (200, 500, 10, 2),
    "sites": (1000, 3000, 400, 10),
}
METHODS = {
    "sklearn": ("ours", "sklearn"),
    "ikpls": ("ours", "ikpls"),
    "wide": ("ours",),
    "converged": ("ours", "sklearn"),
    "sites": ("ours",),
}
# name -> (what is compared, limit, whether the limit is the least or the most)
LIMITS = {
    "sklearn": {"times faster than scikit-learn": ("least", 100.0)},
    "ikpls": {"times faster than ikpls": ("least", 10.0), "largest difference in r": ("most", 1e-5)},
    "wide": {
        "seconds for ten folds from K": ("most", 3.0),
        "(seconds in all - 3) / seconds of the bare product": ("most", 2.0),
    },
    "converged": {"largest difference in r": ("most", 1e-5)},
    "sites": {"CPU seconds for ten folds / of the bare products": ("most", 4.0)},
}


def recordings(n: int, n_features: int, n_sites: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 features (n, n_features) of rank 100 with noise, and noisy responses (n, n_sites) to the same latents."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((n, 100), dtype=np.float32) * np.geomspace(3, 0.1, 100, dtype=np.float32)
    features = np.empty((n, n_features), dtype=np.float32)
    for start in range(0, n_features, BLOCK):
        part = features[:, start : start + BLOCK]
        weights = rng.standard_normal((100, part.shape[1]), dtype=np.float32)
        part[:] = latents @ weights
        for row in part:
            row += rng.standard_normal(len(row), dtype=np.float32)
    responses = latents @ rng.standard_normal((100, n_sites)) * 0.3 + rng.standard_normal((n, n_sites))
    return features, responses


def first_splits(n: int, count: int) -> list[Split]:
    return list(make_splits("kfold", [f"image{i:05d}" for i in range(n)])[:count])


def streamed_gram(features: np.ndarray) -> np.ndarray:
    """X Xᵀ of float32 features: float32 inside a block of features, float64 over the blocks."""
    total = np.zeros((len(features), len(features)))
    for start in range(0, features.shape[1], BLOCK):
        block = features[:, start : start + BLOCK]
        total += block @ block.T
    return total


def ours(features: np.ndarray, responses: np.ndarray, splits: list[Split]) -> list[np.ndarray]:
    predictions = cross_predict(streamed_gram(features), responses, splits, N_COMPONENTS)
    return [values[-1] for values in predictions.values]


def sklearn(features: np.ndarray, responses: np.ndarray, splits: list[Split], **options: float) -> list[np.ndarray]:
    from sklearn.cross_decomposition import PLSRegression

    predictions = []
    for split in splits:
        model = PLSRegression(N_COMPONENTS, scale=False, **options).fit(features[split.train], responses[split.train])
        predictions.append(model.predict(features[split.test]))
    return predictions


def ikpls(features: np.ndarray, responses: np.ndarray, splits: list[Split]) -> list[np.ndarray]:
    from ikpls.numpy import PLS

    features = features.astype(np.float64)
    predictions = []
    for split in splits:
        model = PLS(algorithm=1, scale_X=False, scale_Y=False, dtype=np.float64)
        model.fit(features[split.train], responses[split.train], N_COMPONENTS)
        predictions.append(model.predict(features[split.test], N_COMPONENTS))
    return predictions


def bare_products(gram: np.ndarray, responses: np.ndarray, splits: list[Split]) -> None:
    """What PLS of all folds together cannot do without: a product with K for each component, and YᵀY of each fold."""
    vectors = np.random.default_rng(0).standard_normal((len(splits), len(gram)))
    for _ in range(N_COMPONENTS):
        vectors @ gram
    for split in splits:
        rows = responses[split.train]
        rows.T @ rows


def timed(
    work: Callable[[], object], times: int = 1, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, object]:
    """Median seconds of several runs, and the last result."""
    seconds = []
    for _ in range(times):
        start = clock()
        result = work()
        seconds.append(clock() - start)
    return statistics.median(seconds), result


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(part: str, method: str, size: tuple[int, int, int, int]) -> dict:
    """One method in this process: seconds, memory, and r (n_splits, n_sites)."""
    ours(*recordings(100, 200, 5), first_splits(100, 10))  # loads libraries, starts threads
    features, responses = recordings(*size[:3])
    splits = first_splits(len(features), size[3])
    before = peak_mib()
    result: dict = {}
    if part == "wide":
        result["bare_product"], _ = timed(lambda: features @ features.T, 3)
        result["gram"], gram = timed(lambda: streamed_gram(features), 3)
        result["folds"], predictions = timed(lambda: cross_predict(gram, responses, splits, N_COMPONENTS), 3)
        predicted = [values[-1] for values in predictions.values]
    elif part == "sites":
        gram = streamed_gram(features)
        with threadpool_limits(1):
            result["bare_products"], _ = timed(lambda: bare_products(gram, responses, splits), 3, time.process_time)
            result["folds"], predictions = timed(
                lambda: cross_predict(gram, responses, splits, N_COMPONENTS, last=True), 3, time.process_time
            )
        predicted = [values[-1] for values in predictions.values]
    else:
        options = {"tol": 1e-12, "max_iter": 100_000} if (part, method) == ("converged", "sklearn") else {}
        work = {"ours": ours, "sklearn": sklearn, "ikpls": ikpls}[method]
        result["seconds"], predicted = timed(lambda: work(features, responses, splits, **options))
    result["data_mib"], result["peak_mib"] = before, peak_mib()
    result["r"] = [pearson(p, responses[s.test]).tolist() for p, s in zip(predicted, splits, strict=True)]
    return result


def run_apart(part: str, method: str, quick: bool) -> dict:
    """``measure`` in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--part", part, "--method", method, *(["--quick"] if quick else [])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def compare(part: str, results: dict[str, dict]) -> dict[str, float]:
    """The ratios of one part."""
    mine = results["ours"]
    if part == "wide":
        in_all = mine["gram"] + mine["folds"]
        return {
            "seconds for ten folds from K": mine["folds"],
            "seconds of the bare product": mine["bare_product"],
            "seconds in all": in_all,
            "(seconds in all - 3) / seconds of the bare product": (in_all - 3) / mine["bare_product"],
        }
    if part == "sites":
        return {"CPU seconds for ten folds / of the bare products": mine["folds"] / mine["bare_products"]}
    (peer,) = set(results) - {"ours"}
    faster = {"sklearn": "times faster than scikit-learn", "ikpls": "times faster than ikpls"}[peer]
    difference = np.abs(np.array(mine["r"]) - np.array(results[peer]["r"])).max()
    return {faster: results[peer]["seconds"] / mine["seconds"], "largest difference in r": float(difference)}


def verdict(part: str, name: str, value: float) -> str:
    """The limit that is promised for a number, and whether it is met; empty where there is none."""
    if name not in LIMITS[part]:
        return ""
    side, limit = LIMITS[part][name]
    met = value >= limit if side == "least" else value <= limit
    return f"(at {side} {limit:g}: {'met' if met else 'NOT MET'})"


def report(part: str, results: dict[str, dict], size: tuple[int, int, int, int], quick: bool) -> dict:
    """Print one part and return what is written of it."""
    n, n_features, n_sites, n_splits = size
    print(f"\n{part}: {n} images, {n_features} features, {n_sites} sites, {n_splits} folds", flush=True)
    for method, result in results.items():
        seconds = ", ".join(
            f"{key} {result[key]:.2f} s"
            for key in ("seconds", "bare_product", "bare_products", "gram", "folds")
            if key in result
        )
        memory = f"peak {result['peak_mib']:.0f} MiB, {result['data_mib']:.0f} MiB of it before it starts"
        print(f"  {method:8s} {seconds}; {memory}; median r {np.median(result['r']):.4f}")
    ratios = compare(part, results)
    for name, value in ratios.items():
        print(f"  {name}: {value:.3g} {'' if quick else verdict(part, name, value)}", flush=True)
    without_r = {method: {key: value for key, value in r.items() if key != "r"} for method, r in results.items()}
    return {
        "size": dict(zip(("images", "features", "sites", "folds"), size, strict=True)),
        "methods": without_r,
        "ratios": ratios,
    }


def machine() -> dict:
    import threadpoolctl

    packages = [name for name in ("numpy", "scipy", "sklearn", "ikpls") if find_spec(name)]
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name.replace("sklearn", "scikit-learn")) for name in packages},
        "blas": threadpoolctl.threadpool_info(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=SIZES, action="append", help="one part alone; may be repeated")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--method", help=argparse.SUPPRESS)  # what run_apart calls
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else SIZES
    if arguments.method:
        (part,) = arguments.part
        print(json.dumps(measure(part, arguments.method, sizes[part])))
        return 0
    written: dict = {"machine": machine(), "quick": arguments.quick, "parts": {}}
    print(f"{written['machine']['cpus']} CPUs, {written['machine']['versions']}")
    for part in arguments.part or SIZES:
        results = {method: run_apart(part, method, arguments.quick) for method in METHODS[part]}
        written["parts"][part] = report(part, results, sizes[part], arguments.quick)
        with atomic_path(arguments.output) as temporary:
            temporary.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    missed = [
        name
        for part, content in written["parts"].items()
        for name, value in content["ratios"].items()
        if "NOT MET" in verdict(part, name, value)
    ]
    print(f"\nwritten to {arguments.output}")
    return 1 if missed and not arguments.quick else 0


if __name__ == "__main__":
    sys.exit(main())
