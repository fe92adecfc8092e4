"""One stage of a rehearsal, in a process of its own beside a scratch copy of Brain-Score's models.

``python -m cnnf_brain.brainscore.worker STAGE SCRATCH``: started by rehearsal.py, which sets the environment; writes one line of
JSON for each finding to ``SCRATCH/STAGE.jsonl``.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnf_brain.brainscore.rules import Finding

N_COST = 100  # images that memory and time are measured on
EACH = 10  # images of each object in the toy benchmark
SITES = 12
# Images and sites of real benchmarks, from brainscore-vision's own tests of its data.
BENCHMARKS = (
    ("FreemanZiemba2013.V1-pls", "V1", 315, 102),
    ("FreemanZiemba2013.V2-pls", "V2", 315, 103),
    ("MajajHong2015.V4-pls", "V4", 2560, 88),
    ("MajajHong2015.IT-pls", "IT", 2560, 168),
)
RAJALINGHAM = 2400  # images of Rajalingham2018-i2n, behaviour
PLS_MEMORY = 7  # times the features: the factor of Brain-Score's own check before it scores
PLS_STEPS = 1500  # power iterations of scikit-learn's PLS in one split, 25 components: 1045 to 1444 were counted
SPLITS = 10


def offline() -> None:
    """From here on no connection beyond this machine is made: what asks for one fails at once, as without a network."""
    connect = socket.socket.connect

    def refused(self: socket.socket, address: Any) -> None:
        local = self.family not in (socket.AF_INET, socket.AF_INET6) or address[0] in ("127.0.0.1", "::1", "localhost")
        if not local:
            raise OSError(f"the rehearsal is offline, and something asks for {address[0]}")
        return connect(self, address)

    def unknown_host(host: Any, *rest: Any, **more: Any) -> Any:
        if host in ("127.0.0.1", "::1", "localhost", None, ""):
            return lookup(host, *rest, **more)
        raise socket.gaierror(socket.EAI_NONAME, f"the rehearsal is offline, and something asks for {host}")

    lookup = socket.getaddrinfo
    socket.socket.connect = refused  # type: ignore[assignment, method-assign]
    socket.getaddrinfo = unknown_host


def place_weights(task: dict[str, Any]) -> None:
    """The weights where the plugin looks for them first (a link), and the network shut; without weights the plugin may fetch."""
    identity = plugin_module(task).IDENTITY
    if task["weights"] is None:
        return
    from cnnf_brain.brainscore.commitment import local_file
    from cnnf_brain.brainscore.identity import Weights

    target = local_file(Weights(**identity["weights"]))
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.symlink_to(task["weights"])
    offline()


def plugin_module(task: dict[str, Any]) -> Any:
    """The plugin's model.py, imported from the scratch copy."""
    import importlib

    return importlib.import_module(f"brainscore_vision.models.{Path(task['plugin']).name}.model")


def load(task: dict[str, Any], scratch: Path) -> Iterator[Finding]:
    """Discovery, the model, its map and reference."""
    import brainscore_vision
    import torch

    assert Path(brainscore_vision.__file__ or "").is_relative_to(scratch)
    identifier = task["identifier"]
    model = brainscore_vision.load_model(identifier)
    yield Finding("brainscore-vision discovers the plugin in a copy of its models folder and load_model loads it", True)
    same = model.identifier == identifier
    yield Finding(
        "the model's identifier is the registered one", same, "" if same else f"{model.identifier!r}, {identifier!r}"
    )
    yield Finding("it runs without a GPU", not torch.cuda.is_available(), "CUDA_VISIBLE_DEVICES is empty")
    module = plugin_module(task)
    draft = not (module.IDENTITY["weights"]["stored"] or module.IDENTITY["weights"]["url"])
    words = "the plugin names a place that Brain-Score's machines can load the weights from"
    place = module.IDENTITY["weights"]["stored"] or module.IDENTITY["weights"]["url"]
    told = f"not reached for in this rehearsal: {place}" if task["weights"] else place
    yield Finding(words, not draft, "a draft: write it anew with --stored PATH VERSION_ID or --url URL" if draft else told)
    path = Path(task["plugin"], "region_layer_map", f"{identifier}.json")
    written = json.loads(path.read_text()) if path.is_file() else None
    used = dict(model.layer_model.region_layer_map)
    agree = written == used
    yield Finding(
        f"region_layer_map/{identifier}.json is what the model uses", agree, f"{used}" if agree else f"{written}, {used}"
    )
    bibtex = brainscore_vision.load_model_bibtex(identifier)
    yield Finding("get_bibtex gives the reference for the leaderboard", bool(bibtex and bibtex.strip().startswith("@")))


def generic(task: dict[str, Any], scratch: Path) -> Iterator[Finding]:
    """Brain-Score's generic tests with images in place of the missing ones, then the plugin's test.py."""
    try:
        import pytest  # noqa: F401
        from brainscore_core.plugin_management import generic_plugin_tests_helper
        from brainscore_vision.model_helpers import generic_plugin_tests
    except ImportError as error:
        told = f"not run ({error}); pip install pytest pytest-check"
        yield Finding("Brain-Score's generic plugin tests pass", False, told)
        return

    path = Path(generic_plugin_tests.__file__ or "")
    images = path.parent / "generic_plugin_tests_resources"
    images.mkdir(exist_ok=True)
    for name, image in zip(("rgb1.jpg", "rgb2.jpg", "rgb3.png"), pictures(3), strict=True):
        image.save(images / name)
    asked = ["--plugin_directory", task["plugin"]]
    added = (path.parent / "conftest.py").is_file()  # it adds that option
    helper = [] if added else [generic_plugin_tests_helper]
    yield run_tests("Brain-Score's generic plugin tests pass", path, scratch, asked, helper)
    yield run_tests("the plugin's test.py passes", Path(task["plugin"], "test.py"), scratch)


def run_tests(words: str, file: Path, scratch: Path, options: Sequence[str] = (), plugins: Sequence[Any] = ()) -> Finding:
    """The outcome of a file of tests, in this process."""
    import pytest

    seen = Outcomes()
    common = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(scratch)]
    code = pytest.main([str(file), *common, *options], plugins=[*plugins, seen])
    return Finding(words, code == 0 and seen.passed > 0, str(seen))


class Outcomes:
    """A pytest plugin that counts, and keeps what failed and why tests were skipped."""

    def __init__(self) -> None:
        self.passed, self.wrong = 0, []  # type: ignore[var-annotated]

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed += report.when == "call" and report.passed
        if report.failed or report.skipped:
            reason = report.longrepr[2] if report.skipped else str(report.longreprtext).strip().splitlines()[-1]
            self.wrong.append(f"{report.nodeid.rpartition('::')[2]} {report.outcome}: {reason}")

    def __str__(self) -> str:
        return "; ".join([f"{self.passed} passed", *self.wrong])


def toy(task: dict[str, Any], scratch: Path) -> Iterator[Finding]:
    """V4 and IT through NeuralBenchmark with the metric pls and the internal-consistency ceiling, one after the other."""
    import brainscore_vision

    from cnnf_brain.brainscore.toy import toy_benchmark

    model = brainscore_vision.load_model(task["identifier"])
    scored = {}
    for region in ("V4", "IT"):
        started = time.time()
        benchmark = toy_benchmark(region, scratch / "images", each=EACH, sites=SITES, splits=2)
        score = benchmark(model)
        scored[region] = float(score)
        told = (
            f"{float(score):.3f} of {benchmark.stimuli} images, in {time.time() - started:.0f} s (means nothing: SIMULATED)"
        )
        yield Finding(f"a toy benchmark scores {region} end to end", bool(np.isfinite(float(score))), told)
    layers = model.layer_model.region_layer_map
    apart = layers["V4"] == layers["IT"] or scored["V4"] != scored["IT"]
    yield Finding("V4 and IT, asked for one after the other, are answered by their own layers", apart)
    if plugin_module(task).IDENTITY["iterations"]:
        yield in_time(model, scratch)


def in_time(model: Any, scratch: Path) -> Finding:
    """Whether several time bins are answered by different iterations."""
    bins = [tuple(time_bin) for time_bin in model.layer_model._bins]
    model.start_recording("IT", time_bins=bins)
    found = model.look_at(stimulus_set(scratch / "few", 4))
    values = found.transpose("time_bin", "presentation", "neuroid").values
    differ = all(np.abs(values[t] - values[t - 1]).max() > 0 for t in range(1, len(bins)))
    shown = ", ".join(f"{start}-{end}" for start, end in bins)
    return Finding("recorded from in several time bins, every iteration answers its own", differ, f"{shown} ms")


def cost(task: dict[str, Any], scratch: Path) -> Iterator[Finding]:
    """Memory and seconds of one hundred images in each region, and what that makes of the real benchmarks."""
    import brainscore_vision

    os.environ["RESULTCACHING_DISABLE"] = "1"
    model = brainscore_vision.load_model(task["identifier"])
    stimuli = stimulus_set(scratch / "hundred", N_COST)
    before = peak()
    seconds: dict[str, float] = {}
    features: dict[str, int] = {}
    rate: dict[str, float] = {}
    layers: dict[str, str] = model.layer_model.region_layer_map
    for region, layer in layers.items():
        same = next((one for one in seconds if layers[one] == layer), None)
        if same is not None:
            seconds[region], features[region], rate[region] = seconds[same], features[same], rate[same]
            continue
        started = time.time()
        model.start_recording(region, time_bins=[(70, 170)])
        found = model.look_at(stimuli)
        seconds[region] = (time.time() - started) / N_COST
        features[region] = found.sizes["neuroid"]
        rate[region] = seconds_per_step(np.asarray(found.values, dtype=np.float64))
        del found
    told = ", ".join(f"{region} {seconds[region]:.3f} s/image, {features[region]} features" for region in seconds)
    yield Finding(
        f"{N_COST} images are run", True, f"{told}; {peak():.1f} GiB at most ({before:.1f} GiB of them the model's)"
    )
    import psutil

    have = psutil.virtual_memory().available / 2**30
    for name, region, images, sites in BENCHMARKS:
        memory = PLS_MEMORY * 4 * images * features[region] / 2**30
        run = seconds[region] * images
        fit = rate[region] * 0.9 * images / N_COST * PLS_STEPS * SPLITS
        room = "" if memory < have else f" (this machine has {have:.0f} GiB free)"
        told = f"about {memory:.1f} GiB{room}; here {duration(run)} for the images, {duration(fit)} for PLS of {sites} sites"
        yield Finding(f"estimate for {name}, {images} images", True, told)
    if plugin_module(task).IDENTITY["readout"]:
        told = f"here {duration(seconds['IT'] * RAJALINGHAM)} for the images"
        yield Finding(f"estimate for Rajalingham2018-i2n, {RAJALINGHAM} images", True, told)


def duration(seconds: float) -> str:
    """In minutes or hours."""
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def seconds_per_step(features: np.ndarray) -> float:
    """Seconds of one power iteration of scikit-learn's PLS on these rows: X'u and Xw, the best of three."""
    u, w = np.ones(len(features)), np.ones(features.shape[1])
    times = []
    for _ in range(3):
        started = time.perf_counter()
        _ = features.T @ u, features @ w
        times.append(time.perf_counter() - started)
    return min(times)


def peak() -> float:
    """Largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)


def pictures(n: int) -> list[Image.Image]:
    """n smooth pictures of random colours, 224 x 224."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, 7, 7, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((224, 224), Image.Resampling.BICUBIC) for one in coarse]


def stimulus_set(folder: Path, n: int) -> Any:
    """n pictures as Brain-Score's StimulusSet."""
    from brainscore_core.supported_data_standards.brainio.stimuli import StimulusSet

    folder.mkdir()
    names = [f"picture{number:03}" for number in range(n)]
    stimuli = StimulusSet({"stimulus_id": names})
    stimuli.stimulus_paths = {name: folder / f"{name}.png" for name in names}
    for name, picture in zip(names, pictures(n), strict=True):
        picture.save(folder / f"{name}.png")
    stimuli.identifier = folder.name
    return stimuli


def told(error: Exception, scratch: Path) -> str:
    """An error for the reader of the findings, who cannot place a file in the scratch folder: it is gone by then."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return re.sub(rf"place the .*? at {re.escape(str(scratch))}\S*", "give the weights to the check (--weights FILE)", text)


def main() -> int:
    """Run one stage: 0 where it came to its end, 1 with a finding where it did not."""
    stage, scratch = sys.argv[1], Path(sys.argv[2])
    stages: dict[str, Callable[[dict[str, Any], Path], Iterator[Finding]]]
    stages = {"load": load, "generic": generic, "toy": toy, "cost": cost}
    task = json.loads((scratch / "task.json").read_text())
    warnings.simplefilter("ignore")
    with open(scratch / f"{stage}.jsonl", "w") as results:
        try:
            place_weights(task)
            for finding in stages[stage](task, scratch):
                print(json.dumps(asdict(finding)), file=results, flush=True)
        except Exception as error:
            traceback.print_exc()
            from cnnf_brain.brainscore.rehearsal import STAGES

            finding = Finding(STAGES[stage], False, told(error, scratch))
            print(json.dumps(asdict(finding)), file=results, flush=True)
            return 1
        finally:
            shutil.rmtree(scratch / "homes" / "RESULTCACHING_HOME", ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
