"""Compare the neural predictivity of networks with that of a baseline: ``python -m cnnf_brain.compare --layers V4 IT``.

The main path: networks and recordings are chosen and checked, then for each region images -> products -> predictions ->
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

from cnnf_brain import accuracy, evaluate, networks, results
from cnnf_brain.activations import Probe
from cnnf_brain.choice import Choice, choose
from cnnf_brain.evaluate import RegionAsked, Scoring
from cnnf_brain.io import array_hash, short_hash
from cnnf_brain.model.card import read_card
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.weights import is_published, published_available
from cnnf_brain.networks import Network
from cnnf_brain.predictivity.scores import median_r
from cnnf_brain.recordings import check_sources, load, public_available
from cnnf_brain.report import PAGE, readers
from cnnf_brain.report import comparison as report
from cnnf_brain.types import Evaluation, Recordings

KIND = "compare"
PUBLIC = "MajajHong2015.public"
SIMULATED = "simulated"


@dataclass(frozen=True)
class Options:
    """What is to be compared; the flags of the command line under the same names."""

    layers: tuple[str, ...] = ("V4", "IT")
    iterations: tuple[int, ...] | None = None  # all that the model runs: as trained, else 0, 1 and 2
    model: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    baseline: str | None = None
    baseline_weights: str | None = None
    baseline_layers: tuple[str, ...] = ()
    target: str | None = None
    step_size: float | None = None
    match_norm: bool | None = None
    match_layers: bool | None = None
    ada_relu: str | None = None
    image_size: int | None = None
    validation: str | None = None
    recordings: tuple[str, ...] = ("auto",)
    session: tuple[str, ...] = ()
    splits: str = "kfold"
    components: int = 25
    per_site: bool = False
    pca: int | None = None
    select: str | None = None
    seed: int = 0
    device: str = "auto"
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
    scoring = scoring_of(options)
    networks.pick_device(options.device)
    results.check_place(Path(options.output or "results/any"))
    options, why = decide(options)
    choice = choose_networks(options)
    planned = check_words(options, choice)  # before anything is downloaded
    index = accuracy.validation_images(options.validation)
    accuracy.check([*choice.models, *([choice.baseline] if choice.baseline else [])], index)
    print(headline(options, choice, planned, why), flush=True)
    recordings = load(options.recordings, [one.region for one in planned], options.session or None)
    everything = [source for sources in recordings.values() for source in sources]
    for source in everything:
        evaluate.check_scoring(source, scoring)
    models, baseline = choice.load(options.device)
    asked = evaluate.asked_layers(options.layers, options.iterations, models, baseline, options.baseline_layers)
    shown = _networks(asked)
    accuracy.check(shown, index)  # files without a card are only known now
    run = describe(options, why, shown, recordings)
    folder = Path(options.output) if options.output else Path("results", default_name(options, shown))
    with results.results(folder, KIND, run.pop("configuration")) as staging:
        run["notes"] = notes(shown, evaluate.check_features(asked, everything[0].images, scoring))
        print("".join(f"{note}\n" for note in run["notes"]), end="", flush=True)
        done: list[Evaluation] = []
        for one in asked:
            done += evaluate.evaluate_region(one, recordings[one.region], scoring)
        run["accuracy"] = [asdict(row) for network in shown for row in accuracy.of(network, index, options.batch_size)]
        run |= {"seconds": round(time.time() - started, 1)}
        print(report.write(staging, done, run))
        readers.leave(staging, shown_as=folder)
    print(f"written to {folder}: {', '.join((*report.FILES, PAGE))}")
    return done


def scoring_of(options: Options) -> Scoring:
    """The options that say how predictivity is scored."""
    return Scoring(
        components=options.components,
        per_site=options.per_site,
        splits=options.splits,
        pca=options.pca,
        nested=options.select == "nested",
        seed=options.seed,
        batch_size=options.batch_size,
    )


def decide(options: Options) -> tuple[Options, str]:
    """``auto`` and what was left open made definite, with the reason in words."""
    why = "as named"
    if options.recordings == ("auto",):
        # What falls short first decides: offline each of the two takes about 2 s to be sure of.
        available, about_recordings = public_available()
        reasons = [about_recordings]
        if available and not options.model and not options.weights:
            available, about_weights = published_available("vgg16", networks.PUBLISHED)
            reasons = [*reasons, about_weights] if available else [about_weights]
        options = replace(options, recordings=(PUBLIC if available else SIMULATED,))
        why = f"{'auto' if available else 'auto fell to the simulated recordings'}: {'; '.join(reasons)}"
    if not options.model:
        all_simulated = all(word.split("=")[-1] == SIMULATED for word in options.recordings)
        own = next((word for word in options.weights if word and word != networks.RANDOM), None)
        arch = networks.SMALL if all_simulated and own is None else "vgg16"
        if own is not None and not is_published(own) and Path(own).is_file():
            arch = read_card(own).arch or arch
        options = replace(options, model=(arch,))
    return options, why


def choose_networks(options: Options) -> Choice:
    """The networks that the options name, with as many iterations as are asked for."""
    named = [int(t) for word in options.layers for t in re.findall(r"@(\d+)", word)]
    asked = [*(options.iterations or ()), *named]
    most = max(asked) if options.iterations is not None or named else None
    feedback = networks.given_feedback(options)
    if feedback and most == 0:
        given = ", ".join(f"--{networks.FEEDBACK_FLAGS[name].replace('_', '-')}" for name in sorted(feedback))
        raise ValueError(f"{given}: settings of the feedback, and no feedback iteration is asked for")
    return choose(
        options.model,
        options.weights,
        baseline=options.baseline,
        baseline_weights=options.baseline_weights,
        iterations=most,
        feedback=feedback,
        settings={"image_size": options.image_size, "seed": options.seed},
    )


def check_words(options: Options, choice: Choice) -> list[RegionAsked]:
    """What is asked for, by networks without weights; an error where layers, networks or recordings are not there."""
    models, baseline = choice.skeletons
    asked = evaluate.asked_layers(options.layers, options.iterations, models, baseline, options.baseline_layers)
    check_sources(options.recordings, [one.region for one in asked], options.session or None)
    return asked


def headline(options: Options, choice: Choice, planned: Sequence[RegionAsked], why: str) -> str:
    """The first line of the output: which recordings and networks were taken, and why."""
    simulated = any(word.split("=")[-1] == SIMULATED for word in options.recordings)
    label = "SIMULATED recordings" if simulated else "recordings"
    models, baseline = choice.skeletons

    def named(network: Network) -> str:
        state = f", {network.feedback}" if network.feedback else ""
        return f"{network.name} [{network.weights}]{state}"

    if baseline is None:
        against = "no baseline"
    elif all(one.baseline is None for one in planned):
        against = "no baseline (one network alone)"
    else:
        against = f"baseline {'its own first pass' if choice.itself else named(baseline)}"
    who = "; ".join(f"model {named(network)}" for network in models)
    return f"{label} {' '.join(options.recordings)}; {who}; {against} ({why})"


def notes(shown: Sequence[Network], probes: Sequence[Probe]) -> list[str]:
    """What a reader must know of the networks beside the table."""
    found = []
    for network, probe in zip(shown, probes, strict=True):
        if network.headless:
            found.append(
                f"{network.name} [{network.weights}] is headless: without a classifier, feedback starts from its top feature map"
            )
        for at, by in probe.growth.items():
            found.append(
                f"{network.name} {at}: maps are {by:.1e} times as large as in the first pass, so that a few images may drive the "
                "regression; matched norms (--match-norm, --match-layers) hold them"
            )
    return found


def default_name(options: Options, shown: Sequence[Network]) -> str:
    """A folder name that is the same for the same question."""
    spec = options.model[0].split("/")[-1].replace(":", "-").replace(".py", "")
    return f"{spec}-{short_hash([asdict(options), [network.digest for network in shown]])}"


def _networks(asked: Sequence[RegionAsked]) -> list[Network]:
    """All networks of a comparison, the baseline first, once each."""
    found = {id(one.network): one.network for region in asked for one in region.networks}
    return list(found.values())


def describe(
    options: Options, why: str, shown: Sequence[Network], recordings: dict[str, list[Recordings]]
) -> dict[str, Any]:
    """The record of the run: what it takes to do it again, and to tell whether it was the same."""
    sources = [
        {
            "region": region,
            "source": r.source,
            "simulated": r.simulated,
            "images": len(r.images),
            "sites": r.responses.shape[1],
            "excluded": list(r.excluded),
            "images_sha256": r.images.digest(),
            "responses_sha256": array_hash(r.responses),
        }
        for region, of_region in recordings.items()
        for r in of_region
    ]
    described = [
        {
            "name": network.name,
            "weights": network.weights,
            "sha256": network.digest,
            "image_size": network.preprocessing.size,
            "headless": network.headless,
            "feedback": network.feedback,
            "settings": network.module.settings.as_dict() if isinstance(network.module, CNNF) else None,
        }
        for network in shown
    ]
    decided = {name: value for name, value in asdict(options).items() if name != "output"}
    return {
        "options": asdict(options),
        "chosen": why,
        "simulated": any(source["simulated"] for source in sources),
        "networks": described,
        "recordings": sources,
        "command": results.command(),
        "commit": results.commit(),
        "versions": results.versions(),
        "machine": results.machine(shown[0].device),
        "configuration": {"options": decided, "networks": described, "recordings": sources},
    }


def parse(argv: Sequence[str] | None) -> Options:
    """The command line as Options."""
    p = argparse.ArgumentParser(prog="python -m cnnf_brain.compare", description=(__doc__ or "").split("\n\n")[0])
    add = p.add_argument
    add("--layers", nargs="+", default=["V4", "IT"], metavar="REGION[=LAYER]", help="V4 IT, or V4=features.16@2")
    add("--iterations", nargs="+", type=int, metavar="T", help="feedback iterations (default: as trained, else 0 1 2)")
    add("--model", nargs="+", default=[], help="small, vgg16, alexnet, ..., torchvision:NAME or path/to/file.py:function")
    add(
        "--weights", nargs="+", default=[], help="file, published name, or none: random (default: shipped, or IMAGENET1K_V1)"
    )
    add("--baseline", help="as --model, without feedback; none: no baseline (default: the model's architecture)")
    add("--baseline-weights", help="default: those that training started from, else the published ones")
    add("--baseline-layers", nargs="+", default=[], metavar="REGION=LAYER", help="where they differ from the model's")
    add("--target", help="layer that feedback reconstructs (default: as trained, else input)")
    add("--step-size", type=float, help="1 replaces the target (default: as trained, else 1)")
    add(
        "--match-norm",
        action=argparse.BooleanOptionalAction,
        help="reconstruction at the target's norm (as trained, else yes)",
    )
    add(
        "--match-layers",
        action=argparse.BooleanOptionalAction,
        help="layers at their norm of the first pass (as trained, else yes)",
    )
    add("--ada-relu", choices=["signed", "printed"], help="default: as trained, else signed")
    add("--image-size", type=int, help="default: as trained, else 224 (small: 28)")
    add("--validation", metavar="DIR", help="val/ or val-*.tar: top-1 of every network beside its predictivity")
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
    add("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda")
    add("--batch-size", type=int, default=8)
    add("--output", help="folder (default: under results/)")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(p.parse_args(argv)).items()}
    return Options(**given)


if __name__ == "__main__":
    sys.exit(main())
