"""Peak memory, scratch space and time: of streaming features into products, of a whole comparison, and of Brain-Score's own path.

    python benchmarks/memory.py                             # stream: five pooling layers, iterations 0 to 2, 1200 images
    python benchmarks/memory.py --images 100
    python benchmarks/memory.py --part compare --images 640     # 13 convolutions x 3 iterations through `compare`,
                                                            # beside Brain-Score's own path for one of these layers
    python benchmarks/memory.py --part scoring --images 8000    # K of one layer and PLS, beside what is asked for before

VGG-16 with random weights and random images (for ``scoring`` half as many random features as images): neither memory nor time
depends on their values. Each part, and each side of `compare`, runs in a process of its own, whose largest resident memory counts.
``--work DIR`` keeps the cache, so that an interrupted `compare` goes on (its resident memory is then that of the last process).
Prints a table and writes results/benchmark-memory.json, or results/benchmark-memory-PART.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

POOLS = ("features.4", "features.9", "features.16", "features.23", "features.30")
CONVOLUTIONS = tuple(f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
ONE_LAYER = "features.28@0"  # the smallest map of all, and one pass: what Brain-Score finds easiest
SITES, OBJECTS = 88, 8
STEP = 0.1
RESULTS = Path("results")


def main() -> None:
    """Run one part, print and write the figures."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("--part", choices=["stream", "compare", "scoring", "one-layer"], default="stream")
    p.add_argument("--images", type=int, default=1200)
    p.add_argument("--layers", nargs="+")
    p.add_argument("--iterations", type=int, default=2)
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--work", type=Path, help="folder for weights, images and cache (default: a temporary one)")
    args = p.parse_args()
    args.layers = args.layers or list(POOLS if args.part == "stream" else CONVOLUTIONS)
    with tempfile.TemporaryDirectory(prefix="cnnf-memory-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        os.environ["CNNF_BRAIN_CACHE"] = str(work.resolve() / "cache")
        figures = {"stream": stream, "compare": compare, "scoring": scoring, "one-layer": one_layer}[args.part](
            args, work.resolve()
        )
    if args.part == "one-layer":  # for the process that asked
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:>60}: {value}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / ("benchmark-memory.json" if args.part == "stream" else f"benchmark-memory-{args.part}.json")
    path.write_text(json.dumps({**vars(args), **figures}, indent=2, default=str) + "\n")


def stream(args: argparse.Namespace, work: Path) -> dict[str, float]:
    """Products of all layers in this process."""
    import cnnf_brain
    from cnnf_brain.gram import layer_grams
    from cnnf_brain.images import Preprocessing
    from cnnf_brain.networks import Network
    from cnnf_brain.types import LayerAt

    torch.manual_seed(0)
    model = cnnf_brain.vgg16(iterations=args.iterations, match_norm=True, match_layers=False, step=STEP).eval()
    network = Network(model.to(memory_format=torch.channels_last), Preprocessing(224), name="vgg16 CNN-F", weights="random")
    layers = [LayerAt(name, t) for name in args.layers for t in range(args.iterations + 1)]
    scratch = Watch(work / "cache" / "scratch")
    started = time.time()
    found = layer_grams(network, random_images(args.images), layers, batch_size=args.batch_size)
    seconds = time.time() - started
    return {
        "features per image": sum(product.n_features for product in found.values()),
        "peak resident GiB": resident(resource.RUSAGE_SELF),
        "peak scratch GiB": round(scratch.stop() / 2**30, 2),
        "seconds": round(seconds, 1),
    }


def scoring(args: argparse.Namespace, work: Path) -> dict[str, float]:
    """K of one layer, through its file, and PLS over ten folds: memory above what was resident, and that asked for."""
    from cnnf_brain import Recordings, Scoring
    from cnnf_brain.compare.evaluate import scoring_bytes
    from cnnf_brain.compare.scoring import check_scoring
    from cnnf_brain.gram import read_gram, write_gram
    from cnnf_brain.predictivity.pls import cross_predict
    from cnnf_brain.predictivity.scores import score_predictions
    from cnnf_brain.scratch import Scratch, gram_bytes
    from cnnf_brain.types import Gram, Images, LayerAt

    n, width, rng, at, path = args.images, args.images // 2, np.random.default_rng(0), LayerAt("layer"), work / "k.npz"
    shown = Images.of(np.zeros((n, 4, 4, 3), dtype=np.uint8))
    of, how = Recordings.from_arrays(rng.standard_normal((n, SITES)), shown, region="V4"), Scoring()
    before, started = resident(resource.RUSAGE_SELF), time.time()
    with Scratch("key", width, n) as scratch:
        for first in range(0, n, 500):
            scratch.append(rng.standard_normal((min(500, n - first), width), dtype=np.float32))
        write_gram(path, Gram(at, scratch.gram(), width))
    made = resident(resource.RUSAGE_SELF)
    gram = read_gram(at, path)
    assert gram is not None
    predictions = cross_predict(gram.values, of.responses, check_scoring(of, how), how.components)
    score_predictions(predictions, of.responses)
    return {
        "images": n,
        "K: GiB asked for": round(gram_bytes(n) / 2**30, 2),
        "K: GiB taken": round(made - before, 2),
        "K and PLS: GiB asked for": round(max(gram_bytes(n), scoring_bytes(of, how, 1)) / 2**30, 2),
        "K and PLS: GiB taken": round(resident(resource.RUSAGE_SELF) - before, 2),
        "seconds": round(time.time() - started, 1),
    }


def compare(args: argparse.Namespace, work: Path) -> dict[str, object]:
    """`compare` on all layers and iterations, then one layer through Brain-Score; each in a process of its own."""
    weights, recordings = prepare(args, work)
    command = [sys.executable, "-m", "cnnf_brain.compare", "--model", "vgg16", "--weights", str(weights)]
    command += [
        "--baseline-weights",
        str(weights),
        "--step-size",
        str(STEP),
        "--match-norm",
        "--no-match-layers",
        "--recordings",
        f"V4={recordings}",
    ]
    command += ["--layers", *(f"V4={layer}" for layer in args.layers), "--output", str(work / "report")]
    command += ["--iterations", *map(str, range(args.iterations + 1)), "--batch-size", str(args.batch_size)]
    scratch = Watch(work / "cache" / "scratch")
    memory, seconds, _ = run(command)
    report = json.loads((work / "report" / "summary.json").read_text())
    own = [sys.executable, __file__, "--part", "one-layer", "--images", str(args.images), "--work", str(work)]
    theirs, _, said = run([*own, "--iterations", str(args.iterations), "--batch-size", str(args.batch_size)])
    return {
        "images": args.images,
        "products": len(args.layers) * (args.iterations + 1),
        "rows of the report": len(report["evaluations"]),
        "compare, all layers: peak resident GiB": memory,
        "compare, all layers: peak scratch GiB": round(scratch.stop() / 2**30, 2),
        "compare, all layers: seconds": round(seconds, 1),
        f"Brain-Score, {ONE_LAYER} alone: peak resident GiB": theirs,
        **json.loads(said.splitlines()[-1]),
    }


def one_layer(args: argparse.Namespace, work: Path) -> dict[str, object]:
    """One layer through Brain-Score's ModelCommitment, NeuralBenchmark and metric ``pls``, one split of its ten; then ours."""
    os.environ["BS_INSTALL_DEPENDENCIES"] = "no"
    os.environ["RESULTCACHING_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    from cnnf_brain.brainscore import IterationCommitment, iteration_wrapper
    from cnnf_brain.brainscore.toy import neural_benchmark
    from cnnf_brain.networks import load_network
    from cnnf_brain.recordings import load

    weights, path = prepare(args, work)
    feedback = {"step": STEP, "match_norm": True, "match_layers": False}
    network = load_network("vgg16", str(weights), iterations=args.iterations, feedback=feedback)
    regions = dict.fromkeys(("V1", "V2", "V4", "IT"), ONE_LAYER)
    model = IterationCommitment(iteration_wrapper(network, batch_size=args.batch_size), regions, ((0, 1),), "logits")
    recordings = load([f"V4={path}"], ["V4"])["V4"][0]
    benchmark = neural_benchmark(recordings, "V4", work / "shown", splits=1)
    model.start_recording("V4", time_bins=benchmark.timebins)
    features, look = timed(lambda: model.look_at(benchmark._assembly.stimulus_set))
    raw, fit = timed(lambda: benchmark._similarity_metric(features, benchmark._assembly))
    peak = resident(resource.RUSAGE_SELF)
    r, ours = ours_from(features, benchmark._assembly)
    x = features.transpose("presentation", "neuroid")
    return {
        f"{ONE_LAYER}: features": x.shape[1],
        f"{ONE_LAYER}: seconds of the images, for both": round(look, 1),
        f"{ONE_LAYER}: Brain-Score, seconds of one split of ten": round(fit, 1),
        f"{ONE_LAYER}: ours, seconds of ten splits, product included": round(ours, 2),
        f"{ONE_LAYER}: times faster, ten splits from features": round(10 * fit / ours),
        f"{ONE_LAYER}: times faster, images included": round((look + 10 * fit) / (look + ours), 1),
        f"{ONE_LAYER}: median r of the first split, Brain-Score": round(float(raw), 5),
        f"{ONE_LAYER}: median r of the first split, ours": round(r, 5),
        "GiB of that process before ours": peak,
    }


def ours_from(features: Any, target: Any) -> tuple[float, float]:
    """Median r in Brain-Score's first split from its own assemblies, and seconds of all ten splits, the best of three."""
    from cnnf_brain.predictivity.crossval import make_splits
    from cnnf_brain.predictivity.pls import cross_predict
    from cnnf_brain.predictivity.scores import score_predictions

    ids, shown = target["stimulus_id"].values, list(features["stimulus_id"].values)
    x = features.transpose("presentation", "neuroid").values[
        [shown.index(name) for name in ids]
    ]  # rows as Brain-Score's splits
    y = np.asarray(target.transpose("presentation", "neuroid").values, dtype=np.float64)
    objects = target["object_name"].values

    def score() -> float:
        centred = x - x.mean(axis=0)
        splits = make_splits("brainscore", [str(name) for name in ids], object_names=objects)
        predicted = cross_predict((centred @ centred.T).astype(np.float64), y, splits, 25)
        return float(np.median(score_predictions(predicted, y).r[0]))

    return min((timed(score) for _ in range(3)), key=lambda found: found[1])


def prepare(args: argparse.Namespace, work: Path) -> tuple[Path, Path]:
    """Random weights of VGG-16, and recordings of random responses with repeats to random images; made once."""
    import safetensors.torch

    from cnnf_brain.model.zoo import sequential
    from cnnf_brain.recordings import write_assembly

    weights, recordings = work / "vgg16.safetensors", work / f"random-{args.images}.nc"
    if not weights.exists():
        torch.manual_seed(0)
        state = {name: tensor.contiguous() for name, tensor in sequential("vgg16", 1000).state_dict().items()}
        safetensors.torch.save_file(state, weights)
    if not recordings.exists():
        images = random_images(args.images)
        paths = [work / f"{name}.png" for name in images.ids]
        for number, path in enumerate(paths):
            path.write_bytes(images.read(number))
        small = np.stack([np.asarray(images.decode(i).resize((6, 6)), dtype=float).ravel() for i in range(len(images))])
        rng = np.random.default_rng(0)
        signal = (small - small.mean(axis=0)) / small.std() @ rng.standard_normal((small.shape[1], SITES))
        repeats = signal[:, :, None] + 5 * rng.standard_normal((*signal.shape, 4))
        objects = [f"object{number % OBJECTS}" for number in range(len(images))]
        write_assembly(recordings, repeats, paths, region="V4", object_names=objects)
    return weights, recordings


def run(command: list[str]) -> tuple[float, float, str]:
    """Largest resident memory in GiB, seconds and standard output of a process; a SystemExit where it fails."""
    started = time.time()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:6])} ... ended with {process.returncode}")
    return round(used.ru_maxrss / 2**20, 2), time.time() - started, said


def timed(what: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds)."""
    started = time.perf_counter()
    result = what()
    return result, time.perf_counter() - started


def resident(who: int) -> float:
    """Largest resident memory so far, GiB."""
    return round(resource.getrusage(who).ru_maxrss / 2**20, 2)


def random_images(n: int) -> cnnf_brain.types.Images:  # noqa: F821
    """n images of noise as PNG."""
    from cnnf_brain.types import Images

    def read(i: int) -> bytes:
        pixels = np.random.default_rng(i).integers(0, 256, (112, 112, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return Images(tuple(f"noise-{i}" for i in range(n)), read, "noise")


class Watch:
    """The largest size that a folder had."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.largest, self.over = folder, 0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.over.wait(0.5):
            used = 0
            for path in self.folder.rglob("*"):
                try:
                    used += path.stat().st_size
                except OSError:  # removed in between
                    continue
            self.largest = max(self.largest, used)

    def stop(self) -> int:
        """Bytes at the most."""
        self.over.set()
        self.thread.join()
        return self.largest


if __name__ == "__main__":
    if shutil.disk_usage(tempfile.gettempdir()).free < 2**30:
        raise SystemExit("less than 1 GiB free for temporary files; set TMPDIR to a larger disk")
    main()
