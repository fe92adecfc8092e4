"""Compare the neural predictivity of a network with that of a baseline: ``python -m cnnf_brain.compare --layers V4 IT``.

The main path: recordings and networks are chosen and checked, then for each region images -> products -> predictions ->
scores -> comparison, then the report. A run that was interrupted goes on from the products that it had finished.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cnnf_brain import evaluate, files, networks, provenance
from cnnf_brain.evaluate import Scoring
from cnnf_brain.model.weights import published_available
from cnnf_brain.networks import Network
from cnnf_brain.predictivity.scores import median_r
from cnnf_brain.recordings import load, public_available
from cnnf_brain.report import PAGE, page
from cnnf_brain.report import comparison as report
from cnnf_brain.types import Evaluation

PUBLIC = "MajajHong2015.public"
SIMULATED = "simulated"
DEFAULT_ITERATIONS = (0, 1, 2)


@dataclass(frozen=True)
class Options:
    """What is to be compared; the flags of the command line under the same names."""

    layers: tuple[str, ...] = ("V4", "IT")
    iterations: tuple[int, ...] | None = None  # (0, 1, 2), or (0,) for a network without feedback
    model: str | None = None
    weights: str | None = None
    baseline: str | None = None
    baseline_weights: str | None = None
    baseline_layers: tuple[str, ...] = ()
    target: str | None = None
    step_size: float | None = None
    match_norm: bool | None = None
    match_layers: bool | None = None
    ada_relu: str | None = None
    image_size: int | None = None
    recordings: tuple[str, ...] = ("auto",)
    session: tuple[str, ...] = ()
    splits: str = "kfold"
    components: int = 25
    per_site: bool = False
    pca: int | None = None
    select: str | None = None
    seed: int = 0
    device: str = "cpu"
    batch_size: int = 8
    output: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 where all that was asked for was scored, 1 with one line on stderr where it was not, 2 for its flags."""
    options = parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks the table's signs is no reason to fail
    try:
        done = compare(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        return 130
    undefined = [f"{e.region} {e.source} {e.network} {e.layer}" for e in done if np.isnan(median_r(e.scores))]
    if undefined:
        print(
            f"error: no site has an r, since features or predictions are constant: {', '.join(undefined)}", file=sys.stderr
        )
    return 1 if undefined else 0


def compare(options: Options) -> list[Evaluation]:
    """Score, compare and write the report; see ``docs/compare.md`` for the files."""
    started = time.time()
    scoring = Scoring(
        components=options.components,
        per_site=options.per_site,
        splits=options.splits,
        pca=options.pca,
        nested=options.select == "nested",
        seed=options.seed,
        batch_size=options.batch_size,
    )
    options, why = decide(options)
    print(headline(options, why), flush=True)
    model, baseline = load_networks(options)
    for network in (model, baseline):
        if network.headless:
            print(
                f"{network.name} ({network.weights}) is headless: without a classifier, feedback starts from its top feature map"
            )
    asked = evaluate.asked_layers(options.layers, iterations_of(options, model), model, baseline, options.baseline_layers)
    folder = Path(options.output) if options.output else Path("results", default_name(options, model))
    files.check_writable(folder)
    recordings = load(options.recordings, [one.region for one in asked], options.session or None)
    everything = [source for sources in recordings.values() for source in sources]
    for source in everything:
        evaluate.check_scoring(source, scoring)
    evaluate.check_features(asked, everything[0].images, model, baseline, scoring)
    done: list[Evaluation] = []
    for one in asked:
        done += evaluate.evaluate_region(one, recordings[one.region], model, baseline, scoring)
    run = describe(options, why, model, baseline, recordings, started)
    print(report.write(folder, done, run))
    page.leave(folder)
    print(f"written to {folder}: {', '.join((*report.FILES, PAGE))}")
    return done


def decide(options: Options) -> tuple[Options, str]:
    """``auto`` and what was left open made definite, with the reason in words."""
    why = "as named"
    if options.recordings == ("auto",):
        # What falls short first decides: offline each of the two takes about 2 s to be sure of.
        available, about_recordings = public_available()
        reasons = [about_recordings]
        if available and options.model is None and options.weights is None:
            available, about_weights = published_available("vgg16", networks.PUBLISHED)
            reasons = [*reasons, about_weights] if available else [about_weights]
        options = replace(options, recordings=(PUBLIC if available else SIMULATED,))
        why = f"{'auto' if available else 'auto fell to the simulated recordings'}: {'; '.join(reasons)}"
    if options.model is None:
        all_simulated = all(word.split("=")[-1] == SIMULATED for word in options.recordings)
        options = replace(options, model=networks.SMALL if all_simulated else "vgg16")
    if options.baseline in (None, options.model):
        options = replace(options, baseline=options.model, baseline_weights=options.baseline_weights or options.weights)
    return options, why


def headline(options: Options, why: str) -> str:
    """The first line of the output: which recordings and networks were taken, and why."""
    simulated = any(word.split("=")[-1] == SIMULATED for word in options.recordings)
    label = "SIMULATED recordings" if simulated else "recordings"
    return f"{label} {' '.join(options.recordings)}; model {options.model}, baseline {options.baseline} ({why})"


def iterations_of(options: Options, model: Network) -> tuple[int, ...]:
    """The iterations that are asked for; by default 0, 1 and 2 as far as the model runs them."""
    if options.iterations is not None:
        return options.iterations
    return tuple(t for t in DEFAULT_ITERATIONS if t <= model.iterations)


def has_feedback(spec: str | None) -> bool:
    """Whether a network of this name is built as CNN-F."""
    return spec == networks.SMALL or spec in networks.ARCHITECTURES


def load_networks(options: Options) -> tuple[Network, Network]:
    """The model, with as many iterations as are asked for, and the baseline: a network without feedback."""
    assert options.model is not None
    assert options.baseline is not None
    named = [int(t) for word in options.layers for t in re.findall(r"@(\d+)", word)]
    most = max([*(options.iterations or DEFAULT_ITERATIONS), *named]) if has_feedback(options.model) else 0
    feedback = networks.given_feedback(options)
    common: dict[str, Any] = {"image_size": options.image_size, "device": options.device}
    if feedback and not most:
        named_flags = ", ".join(f"--{networks.FEEDBACK_FLAGS[setting].replace('_', '-')}" for setting in feedback)
        raise ValueError(f"{named_flags}: settings of the feedback, and the command runs no feedback iteration of its own")
    model = networks.load_network(options.model, options.weights, iterations=most, feedback=feedback, **common)
    baseline = networks.load_network(options.baseline, options.baseline_weights, **common)
    return model, baseline


def default_name(options: Options, model: Network) -> str:
    """A folder name that is the same for the same question."""
    spec = (options.model or "").split("/")[-1].replace(":", "-").replace(".py", "")
    return f"{spec}-{files.short_hash([asdict(options), model.digest])}"


def describe(
    options: Options, why: str, model: Network, baseline: Network, recordings: dict[str, list], started: float
) -> dict[str, Any]:
    """The configuration of the run: what it takes to do it again, and to tell whether it was the same."""

    def network(one: Network) -> dict[str, Any]:
        return {
            "name": one.name,
            "weights": one.weights,
            "sha256": one.digest,
            "image_size": one.preprocessing.size,
            "headless": one.headless,
            "feedback": getattr(one.module, "settings", None),
        }

    return {
        "options": asdict(options),
        "chosen": why,
        "simulated": any(r.simulated for sources in recordings.values() for r in sources),
        "model": network(model),
        "baseline": network(baseline),
        "recordings": [
            {
                "region": region,
                "source": r.source,
                "simulated": r.simulated,
                "images": len(r.images),
                "sites": r.responses.shape[1],
                "excluded": list(r.excluded),
                "images_sha256": r.images.digest(),
                "responses_sha256": files.array_hash(r.responses),
            }
            for region, sources in recordings.items()
            for r in sources
        ],
        "command": provenance.command(),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "machine": provenance.machine(model.device),
        "seconds": round(time.time() - started, 1),
    }


def parse(argv: Sequence[str] | None) -> Options:
    """The command line as Options."""
    p = argparse.ArgumentParser(prog="python -m cnnf_brain.compare", description=(__doc__ or "").split("\n\n")[0])
    add = p.add_argument
    add("--layers", nargs="+", default=["V4", "IT"], metavar="REGION[=LAYER]", help="V4 IT, or V4=features.16@2")
    add("--iterations", nargs="+", type=int, metavar="T", help="feedback iterations to score (default 0 1 2)")
    add("--model", help="small, vgg16, alexnet, ..., torchvision:NAME or path/to/file.py:function")
    add("--weights", help="file or published name (default: shipped, or IMAGENET1K_V1)")
    add("--baseline", help="as --model; without feedback (default: the model's architecture)")
    add("--baseline-weights", help="default: those of --weights")
    add("--baseline-layers", nargs="+", default=[], metavar="REGION=LAYER", help="where they differ from the model's")
    add("--target", help="layer that feedback reconstructs (default: as trained, else input)")
    add("--step-size", type=float, help="1 replaces the target (default: as trained, else 1)")
    add("--match-norm", action=argparse.BooleanOptionalAction, help="scale the reconstruction to the target's norm")
    add("--match-layers", action=argparse.BooleanOptionalAction, help="hold each layer to its norm of the first pass")
    add("--ada-relu", choices=["signed", "printed"], help="default: as trained, else signed")
    add("--image-size", type=int, help="default 224 (small: 28)")
    add(
        "--recordings",
        nargs="+",
        default=["auto"],
        metavar="[REGION=]SOURCE",
        help="auto, simulated, MajajHong2015.public, ...",
    )
    add("--session", nargs="+", default=[], help="sessions of V4_compact_models")
    add("--splits", choices=["kfold", "brainscore"], default="kfold", help="ten true folds, or Brain-Score's shuffle splits")
    add("--components", type=int, default=25)
    add("--per-site", action="store_true", help="one PLS model per site (PLS1), as the paper words it")
    add("--pca", type=int, metavar="N", help="keep N principal components of the features first")
    add("--select", choices=["nested"], help="choose layer and iteration on training folds only")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--batch-size", type=int, default=8)
    add("--output", help="folder (default: under results/)")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(p.parse_args(argv)).items()}
    return Options(**given)


if __name__ == "__main__":
    sys.exit(main())
