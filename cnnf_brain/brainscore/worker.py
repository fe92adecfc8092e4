"""The stages of a rehearsal, in a process beside a scratch copy of Brain-Score's models.

``python -m cnnf_brain.brainscore.worker SCRATCH``: started by rehearsal.py, which sets the environment. It writes a line of JSON
to ``SCRATCH/findings.jsonl`` where a stage begins, for each finding, and where the stage ends. After the stage of the weights it
becomes a process behind the fence that the task names: all that runs the plugin's code is begun there, with nothing imported yet.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import sys
import time
import timeit
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

import brainscore_vision
import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from cnnf_brain import io
from cnnf_brain.brainscore.commitment import Weights
from cnnf_brain.brainscore.rehearsal import DRAFT, FAILED, NOT_RUN, OK, STAGES, Finding, held
from cnnf_brain.brainscore.toy import pictures, stimulus_set, toy_benchmark
from cnnf_brain.brainscore.vendor import absent, forget
from cnnf_brain.checks import peak_memory

MAX_FILE = 2**32  # bytes of a file that the plugin's code may write
OFFLINE = (errno.ENETUNREACH, errno.EHOSTUNREACH, socket.EAI_AGAIN, socket.EAI_NONAME)
N_IMAGES = 16  # of the toy benchmark; memory and time are measured on them
ROWS = 128  # that a step of PLS is timed on
PATIENCE = 20.0  # seconds for an address to answer
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


@dataclass
class Rehearsal:
    """What the stages share: the task, the model once it is loaded, and what running the images took."""

    task: dict[str, Any]
    scratch: Path
    blocked: str = ""  # why what follows cannot be run
    model: Any = None
    seconds: float = 0.0  # of an image
    features: dict[str, int] = field(default_factory=dict)  # of each layer
    step: dict[str, float] = field(default_factory=dict)  # seconds of a step of PLS on ROWS images, of each layer


def weights(run: Rehearsal) -> Iterator[Finding]:
    """The address of the weights is asked for, and the file comes to where the plugin looks for it first.

    The network is open to this stage alone, and it runs nothing of the plugin.
    """
    known = Weights(**run.task["identity"]["weights"])
    if known.made:
        yield Finding("the plugin's own code makes its weights, and none are loaded", OK)
        return
    given = run.task["weights"] and Path(run.task["weights"])
    reached = ask(known, given)
    yield reached
    if given is not None:
        same = io.sha256(given) == known.sha256
        told = str(given) if same else f"{given} is another file"
        yield held("the weights on this machine have the plugin's SHA-256", same, told)
        if same:
            known.local.parent.mkdir(parents=True, exist_ok=True)
            known.local.symlink_to(given)
        else:
            run.blocked = "the weights on this machine are not the plugin's"
    elif reached.status == OK:
        size = known.fetch().stat().st_size
        yield Finding("the fetched weights have the plugin's SHA-256", OK, f"{size} bytes")
    else:
        run.blocked = "the weights are neither on this machine nor fetched"


def ask(known: Weights, given: Path | None) -> Finding:
    """Whether the place that the plugin names answers, with a file as large as the one here; the file is not fetched for it."""
    words = "Brain-Score's machines can load the weights from the place that the plugin names"
    if known.draft:
        return Finding(words, DRAFT, "it names none: upload the weights, and write the plugin anew with their place")
    try:
        length = io.download_size(known.address, PATIENCE)
    except OSError as error:
        code = getattr(error.__cause__, "code", None)  # of an answer by HTTP
        if code in (405, 501):
            return Finding(words, NOT_RUN, f"{known.address} does not say whether it has the file ({code})")
        return (
            held(words, False, str(error)) if code else Finding(words, NOT_RUN, f"{known.address} was not reached ({error})")
        )
    if given is None or length is None:
        return Finding(words, OK, f"{known.address} answers")
    size = given.stat().st_size
    told = f"{known.address} has {length} bytes, the file here {size}"
    return held(words, length == size, f"{told}; its content is compared when the weights are not on this machine")


def load(run: Rehearsal) -> Iterator[Finding]:
    """Discovery, the model, its map and reference."""
    assert Path(brainscore_vision.__file__ or "").is_relative_to(run.scratch)
    identifier = run.task["identifier"]
    run.blocked = "the model cannot be loaded"
    run.model = brainscore_vision.load_model(identifier)
    run.blocked = ""
    yield Finding("brainscore-vision discovers the plugin in a copy of its models folder and load_model loads it", OK)
    found = run.model.identifier
    same = found == identifier
    yield held("the model's identifier is the registered one", same, "" if same else f"{found!r}, {identifier!r}")
    yield held("it runs without a GPU", not torch.cuda.is_available(), "CUDA_VISIBLE_DEVICES is empty")
    path = Path(run.task["plugin"], "region_layer_map", f"{identifier}.json")
    written = json.loads(path.read_text()) if path.is_file() else None
    used = dict(run.model.layer_model.region_layer_map)
    told = f"{used}" if written == used else f"{written}, {used}"
    yield held(f"region_layer_map/{identifier}.json is what the model uses", written == used, told)
    bibtex = brainscore_vision.load_model_bibtex(identifier)
    yield held("get_bibtex gives the reference for the leaderboard", bool(bibtex and bibtex.strip().startswith("@")))


def tests(run: Rehearsal) -> Iterator[Finding]:
    """Brain-Score's generic tests with images in place of the missing ones, then the plugin's test.py."""
    try:
        from brainscore_core.plugin_management import generic_plugin_tests_helper
        from brainscore_vision.model_helpers import generic_plugin_tests
    except ImportError as error:
        yield held("Brain-Score's generic plugin tests pass", False, f"{error}; pip install pytest pytest-check")
        return
    path = Path(generic_plugin_tests.__file__ or "")
    images = path.parent / "generic_plugin_tests_resources"
    images.mkdir(exist_ok=True)
    made = pictures(3)
    for i, name in enumerate(("rgb1.jpg", "rgb2.jpg", "rgb3.png")):
        made.decode(i).save(images / name)
    asked = ["--plugin_directory", run.task["plugin"]]
    added = (path.parent / "conftest.py").is_file()  # it adds that option
    helper = [] if added else [generic_plugin_tests_helper]
    yield run_tests("Brain-Score's generic plugin tests pass", path, run.scratch, asked, helper)
    yield run_tests("the plugin's test.py passes", Path(run.task["plugin"], "test.py"), run.scratch)


def run_tests(words: str, file: Path, scratch: Path, options: Sequence[str] = (), plugins: Sequence[Any] = ()) -> Finding:
    """The outcome of a file of tests, in this process."""
    import pytest

    seen = Outcomes()
    common = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(scratch)]
    code = pytest.main([str(file), *common, *options], plugins=[*plugins, seen])
    return held(words, code == 0 and seen.passed > 0, str(seen))


class Outcomes:
    """A pytest plugin that counts, and keeps what failed and why tests were skipped."""

    def __init__(self) -> None:
        self.passed, self.wrong = 0, list[str]()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed += report.when == "call" and report.passed
        if report.failed or report.skipped:
            reason = report.longrepr[2] if report.skipped else str(report.longreprtext).strip().splitlines()[-1]
            self.wrong.append(f"{report.nodeid.rpartition('::')[2]} {report.outcome}: {reason}")

    def __str__(self) -> str:
        return "; ".join([f"{self.passed} passed", *self.wrong])


def scoring(run: Rehearsal) -> Iterator[Finding]:
    """V4 and IT through NeuralBenchmark with PLS and the internal-consistency ceiling, one after the other.

    All layers are run once, before; Brain-Score's own cache of activations serves the benchmarks.
    """
    folder, shown = run.scratch / "images", pictures(N_IMAGES)
    measure(run, stimulus_set(shown, folder, number=range(N_IMAGES)))
    scored = {}
    for region in ("V4", "IT"):
        scored[region] = score = float(toy_benchmark(region, shown, folder)(run.model))
        told = f"{score:.3f} of {N_IMAGES} images (means nothing: SIMULATED)"
        yield held(f"a toy benchmark scores {region} end to end", bool(np.isfinite(score)), told)
    layers = run.model.layer_model.region_layer_map
    apart = layers["V4"] == layers["IT"] or scored["V4"] != scored["IT"]
    yield held("V4 and IT, asked for one after the other, are answered by their own layers", apart)
    if run.task["identity"]["iterations"]:
        yield in_time(run.model, stimulus_set(shown, folder, number=range(N_IMAGES)))


def measure(run: Rehearsal, shown: Any) -> None:
    """Run all images at every layer that scoring asks for, and note what it took."""
    model = run.model.layer_model
    regions = model.region_layer_map
    in_time = [name for region in regions for of_layer in model._layers(region) for name in of_layer]
    names = list(dict.fromkeys([*regions.values(), *(in_time if run.task["identity"]["iterations"] else [])]))
    started = time.time()
    found = run.model.activations_model(shown, layers=names, number_of_trials=1, require_variance=False)
    run.seconds = (time.time() - started) / N_IMAGES
    for layer in dict.fromkeys(regions.values()):
        values = found.transpose("presentation", "neuroid").values[:, found["layer"].values == layer]
        run.features[layer] = values.shape[1]
        run.step[layer] = seconds_per_step(np.resize(values, (ROWS, values.shape[1])).astype(np.float64))


def in_time(model: Any, shown: Any) -> Finding:
    """Whether several time bins are answered by different iterations."""
    bins = model.layer_model._bins
    model.start_recording("IT", time_bins=bins)
    values = model.look_at(shown).transpose("time_bin", "presentation", "neuroid").values
    differ = bool(np.abs(np.diff(values, axis=0)).max(axis=(1, 2)).all())
    told = ", ".join(f"{start}-{end}" for start, end in bins)
    return held("recorded from in several time bins, every iteration answers its own", differ, f"{told} ms")


def cost(run: Rehearsal) -> Iterator[Finding]:
    """What the images of the stage before make of the real benchmarks."""
    regions: dict[str, str] = run.model.layer_model.region_layer_map
    told = ", ".join(f"{region} {run.features[layer]} features" for region, layer in regions.items())
    told = f"{run.seconds:.3f} s/image, {peak_memory() / 2**30:.1f} GiB at most; {told}"
    yield Finding(f"{N_IMAGES} images are run at all layers", OK, told)
    have = psutil.virtual_memory().available / 2**30
    for name, region, images, sites in BENCHMARKS:
        layer, told = regions.get(region), f"none: the plugin leaves out {region}"
        if layer is not None:
            memory = PLS_MEMORY * 4 * images * run.features[layer] / 2**30
            fit = run.step[layer] * 0.9 * images / ROWS * PLS_STEPS * SPLITS
            room = "" if memory < have else f" (this machine has {have:.0f} GiB free)"
            shown, fitted = duration(run.seconds * images), duration(fit)
            told = f"about {memory:.1f} GiB{room}; here {shown} for the images, {fitted} for PLS of {sites} sites"
        yield Finding(f"estimate for {name}, {images} images", OK, told)
    if run.task["identity"]["readout"]:
        told = f"here {duration(run.seconds * RAJALINGHAM)} for the images"
        yield Finding(f"estimate for Rajalingham2018-i2n, {RAJALINGHAM} images", OK, told)


def duration(seconds: float) -> str:
    """In minutes or hours."""
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def seconds_per_step(features: NDArray[Any]) -> float:
    """Seconds of one power iteration of scikit-learn's PLS on these rows: X'u and Xw, the best of three."""
    u, w = np.ones(len(features)), np.ones(features.shape[1])
    return min(timeit.repeat(lambda: (features.T @ u, features @ w), number=1, repeat=3))


def told(error: BaseException, scratch: Path, fenced: bool = False) -> str:
    """An error for the reader of the findings, who cannot place a file in the scratch folder: it is gone by then."""
    if isinstance(error, ModuleNotFoundError):
        lacking = "Brain-Score's machines lack it, and requirements.txt does not name it"
        return f"{type(error).__name__}: No module named {error.name!r}; {lacking}"
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    asked = fenced and any(isinstance(cause, OSError) and cause.errno in OFFLINE for cause in causes(error))
    text = f"{text}; the rehearsal has no network, and the plugin asks for it" if asked else text
    return re.sub(rf"place the .*? at {re.escape(str(scratch))}\S*", "give the weights to the check", text)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def confine(scratch: Path, task: dict[str, Any], blocked: str) -> NoReturn:
    """Become the worker of the stages after the weights: behind the task's fence, in its memory. ``blocked`` is a Rehearsal's."""
    import resource  # not on Windows, where nothing is rehearsed

    for kind, value in (
        (resource.RLIMIT_DATA, task["memory"]),
        (resource.RLIMIT_FSIZE, MAX_FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))
    command = [*task["fence"], sys.executable, "-m", "cnnf_brain.brainscore.worker", str(scratch), blocked]
    os.execvp(command[0], command)


PARTS: tuple[Callable[[Rehearsal], Iterator[Finding]], ...] = (weights, load, tests, scoring, cost)


def main() -> int:
    """Run the stage of the weights and go behind the fence, or run the other stages there: 0 where each came to its end."""
    scratch, behind = Path(sys.argv[1]), sys.argv[2:]
    run = Rehearsal(json.loads((scratch / "task.json").read_text()), scratch, blocked="".join(behind))
    warnings.simplefilter("ignore")
    with open(scratch / "findings.jsonl", "a") as results:
        if not behind:
            perform(weights, run, results)
            confine(scratch, run.task, run.blocked)
        forget(absent(run.task["requirements"]))
        for stage in PARTS[1:]:
            perform(stage, run, results)
    shutil.rmtree(scratch / "homes" / "RESULTCACHING_HOME", ignore_errors=True)
    return 0


def perform(stage: Callable[[Rehearsal], Iterator[Finding]], run: Rehearsal, results: IO[str]) -> None:
    """Run one stage and write what it finds; what it raises is a finding."""
    name = stage.__name__

    def write(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=results, flush=True)

    started = time.time()
    write({"begin": name})
    try:
        found = iter([Finding(STAGES[name], NOT_RUN, f"since {run.blocked}")]) if run.blocked else stage(run)
        for finding in found:
            write(asdict(finding))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        write(asdict(Finding(STAGES[name], FAILED, told(error, run.scratch, bool(run.task.get("fence"))))))
        if stage is scoring:
            run.blocked = "no image was run to its end"
    write({"end": name, "seconds": time.time() - started})


if __name__ == "__main__":
    sys.exit(main())
