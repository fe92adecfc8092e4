"""Compare the neural predictivity of networks with that of a baseline: ``python -m cnnf_brain.compare --layers V4 IT``.

Names become networks and recordings, all of it checked before anything is downloaded; then ``compare`` is called and its result
saved. A run that was interrupted goes on from what it had finished.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cnnf_brain import cli, images, networks, results
from cnnf_brain.compare import accuracy, compare, describe_network, describe_recordings, words
from cnnf_brain.compare.choice import Choice, choose
from cnnf_brain.compare.comparison import AGAIN, FILES, KIND, Comparison
from cnnf_brain.compare.layers import RegionAsked, asked_layers, networks_of
from cnnf_brain.compare.scoring import Scoring, usable
from cnnf_brain.io import short_hash
from cnnf_brain.model import zoo
from cnnf_brain.model.settings import SETTINGS, FeedbackSettings
from cnnf_brain.model.weights import SMALL, is_published, published_available, read_card
from cnnf_brain.networks import Network
from cnnf_brain.recordings import Recordings, check_sources, load, public_available
from cnnf_brain.recordings.simulated import NAME, READOUT
from cnnf_brain.report import tell
from cnnf_brain.types import option

PUBLIC = "MajajHong2015.public"
SIMULATED = (NAME, READOUT)
FEEDBACK = tuple(name for name in SETTINGS if name not in ("iterations", "tolerance"))  # settings that have a flag here
AS_TRAINED = {
    "target": "as trained, else input",
    "step": "as trained, else 1",
    "match_norm": "as trained, else yes",
    "match_layers": "as trained, else yes",
    "ada_relu": "as trained, else signed",
}


@dataclass(frozen=True)
class Options:
    """What is to be compared; the flags of the command line under the same names."""

    layers: tuple[str, ...] = option(("V4", "IT"), "V4 IT, or V4=features.16@2", metavar="REGION[=LAYER]")
    iterations: tuple[int, ...] | None = option(None, "feedback iterations (default: as trained, else 0 1 2)", metavar="T")
    model: tuple[str, ...] = option((), "small, vgg16, alexnet, ..., torchvision:NAME or path/to/file.py:function")
    weights: tuple[str, ...] = option((), "file, published name, or none: random (default: shipped, or IMAGENET1K_V1)")
    baseline: str | None = option(
        None, "as --model, without feedback; none: no baseline (default: the model's architecture)"
    )
    baseline_weights: str | None = option(None, "default: those that training started from, else the published ones")
    baseline_layers: tuple[str, ...] = option((), "where they differ from the model's", metavar="REGION=LAYER")
    image_size: int | None = option(None, "default: as trained, else 224 (small: 28)")
    validation: str | None = option(None, "val/ or val-*.tar: top-1 of every network beside its predictivity", metavar="DIR")
    recordings: tuple[str, ...] = option(
        ("auto",), "auto, simulated, simulated-readout, MajajHong2015.public, ...", metavar="[REGION=]SOURCE"
    )
    session: tuple[str, ...] = option((), "sessions of V4_compact_models")
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda")
    output: str | None = option(None, "folder (default: under results/)")
    feedback: Mapping[str, Any] = field(default_factory=dict)
    scoring: Scoring = field(default_factory=Scoring)

    def decided(self) -> dict[str, Any]:
        """All of them as plain values, without a level between; a setting of the feedback that was not given is None."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if "help" in one.metadata}
        return {**own, **{name: self.feedback.get(name) for name in FEEDBACK}, **self.scoring.decided()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 where all that was asked for was scored, 1 with one line on stderr where it was not, 2 for its flags."""
    args = parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks the table's signs is no reason to fail
    return cli.run(lambda: _report(run(options_of(args))), debug=args.debug)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = cli.Parser(prog="python -m cnnf_brain.compare", description=(__doc__ or "").split("\n\n")[0])
    cli.add_flags(made, Options)
    cli.add_flags(made, FeedbackSettings, only=FEEDBACK, defaults=AS_TRAINED)
    cli.add_flags(made, Scoring)
    return made


def options_of(args: argparse.Namespace) -> Options:
    """The flags as Options."""
    feedback = {name: value for name, value in cli.given(args, FeedbackSettings).items() if name in FEEDBACK}
    return Options(**cli.given(args, Options), feedback=feedback, scoring=Scoring(**cli.given(args, Scoring)))


def _report(done: Comparison) -> int:
    undefined = [
        f"{row['region']} {row['source']} {row['network']} {row['layer']} {row['metric']}"
        for row in done.rows
        if words.score(row)[0] is None
    ]
    if undefined:
        raise ValueError(f"no site has a score, since features or predictions are constant: {', '.join(undefined)}")
    return 0


def run(options: Options) -> Comparison:
    """Score, compare and write the folder; see ``docs/compare.md`` for the files."""
    started = time.time()
    images.pick_device(options.device)
    results.check_place(Path(options.output or "results/any"))
    options, why = decide(options)
    choice = choose_networks(options)
    planned = asked(options, *choice.skeletons)  # before anything is downloaded
    regions = [one.region for one in planned]
    check_sources(options.recordings, regions, options.session or None)
    index = accuracy.validation_images(options.validation)
    accuracy.check([*choice.models, *([choice.baseline] if choice.baseline else [])], index)
    print(headline(options, choice, planned, why), flush=True)
    loaded = load(options.recordings, regions, options.session or None)
    recordings = usable([source for of_region in loaded.values() for source in of_region], options.scoring)
    models, baseline = choice.load(options.device)
    shown = networks_of(asked(options, models, baseline))
    accuracy.check(shown, index)  # files without a card are only known now
    configuration = _configuration(options, shown, recordings)
    folder = Path(options.output) if options.output else Path("results", default_name(options, configuration["networks"]))
    with results.results(folder, KIND, configuration) as staging:
        theirs = by_region(options.baseline_layers, "baseline layers") or None
        found = compare(models, baseline, recordings, layer_names(options), baseline_layers=theirs, scoring=options.scoring)
        measured = [asdict(row) for network in shown for row in accuracy.of(network, index, options.scoring.batch_size)]
        about = {"options": options.decided(), "chosen": why, "configuration": configuration, "accuracy": measured}
        done = Comparison(found.evaluations, {**found.run, **about, "seconds": round(time.time() - started, 1)})
        missing = done.write(staging, folder)
    print(f"{done.markdown()}\n\n{done.answer}\n")
    print(f"written to {folder}: {', '.join(name for name in FILES if (folder / name).exists())}", flush=True)
    tell(folder, missing, AGAIN.format(folder))
    return done


def _configuration(options: Options, shown: Sequence[Network], recordings: Sequence[Recordings]) -> dict[str, Any]:
    """All that decides the results: a folder belongs to it."""
    return {
        "options": {name: value for name, value in options.decided().items() if name != "output"},
        "networks": [describe_network(network) for network in shown],
        "recordings": [describe_recordings(source) for source in recordings],
    }


def decide(options: Options) -> tuple[Options, str]:
    """``auto`` and what was left open made definite, with the reason in words."""
    why = "as named"
    if options.recordings == ("auto",):
        available, reasons = _available(options)
        options = replace(options, recordings=(PUBLIC if available else SIMULATED[0],))
        why = f"{'auto' if available else 'auto fell to the simulated recordings'}: {'; '.join(reasons)}"
    return (options if options.model else replace(options, model=(_default_model(options),))), why


def _available(options: Options) -> tuple[bool, list[str]]:
    """Whether the public recordings, and the weights where none are named, can be had; and why."""
    # What falls short first decides: offline each of the two takes about 2 s to be sure of.
    available, about_recordings = public_available()
    if not available or options.model or options.weights:
        return available, [about_recordings]
    available, about_weights = published_available("vgg16", zoo.PUBLISHED)
    return available, [about_recordings, about_weights] if available else [about_weights]


def _default_model(options: Options) -> str:
    own = next((word for word in options.weights if word and word != networks.RANDOM), None)
    if own is None:
        all_simulated = all(word.split("=")[-1] in SIMULATED for word in options.recordings)
        return SMALL if all_simulated else "vgg16"
    if is_published(own) or not Path(own).is_file():
        return "vgg16"
    return read_card(own).arch or "vgg16"


def choose_networks(options: Options) -> Choice:
    """The networks that the options name, with as many iterations as are asked for."""
    named = [int(t) for word in options.layers for at in re.findall(r"@([\d+]+)", word) for t in re.findall(r"\d+", at)]
    wanted = [*(options.iterations or ()), *named]
    most = max(wanted) if options.iterations is not None or named else None
    if options.feedback and most == 0:
        given = ", ".join(cli.flag_of(one) for one in fields(FeedbackSettings) if one.name in options.feedback)
        raise ValueError(f"{given}: settings of the feedback, and no feedback iteration is asked for")
    return choose(
        list(zip_weights(options.model, options.weights)),
        baseline=options.baseline,
        baseline_weights=options.baseline_weights,
        iterations=most,
        feedback=options.feedback,
        settings={"image_size": options.image_size, "seed": options.scoring.seed},
    )


def zip_weights(specs: Sequence[str], weights: Sequence[str]) -> list[tuple[str, str | None]]:
    """Names and weights in pairs: one name with several weights, or as many of each; no weights: each network's own."""
    if not specs:
        raise ValueError("no model is named")
    if not weights:
        return [(spec, None) for spec in specs]
    if len(specs) == 1:
        return [(specs[0], name) for name in weights]
    if len(specs) != len(weights):
        raise ValueError(
            f"{len(specs)} models and {len(weights)} weights; give one name for all weights, or as many of each"
        )
    return list(zip(specs, weights, strict=True))


def asked(options: Options, models: Sequence[Network], baseline: Network | None) -> list[RegionAsked]:
    """The layers of these networks that the options name."""
    named, theirs = layer_names(options), by_region(options.baseline_layers, "baseline layers")
    for region in theirs:
        if region not in named:
            raise ValueError(
                f"baseline layers are named for region {region}, but it is not among the regions asked for ({', '.join(named)})"
            )
    return asked_layers(named, models, baseline, theirs)


def layer_names(options: Options) -> dict[str, list[str]]:
    """Layers by region, each at the iterations that were named; ``@2`` is the region's own layer at iteration 2."""
    if options.iterations is not None and any(t < 0 for t in options.iterations):
        raise ValueError(f"iterations are {list(options.iterations)}, expected whole numbers >= 0 (0 is the first pass)")

    def at_iterations(name: str) -> list[str]:
        return [name] if "@" in name or options.iterations is None else [f"{name}@{t}" for t in options.iterations]

    found = by_region(options.layers, "layers")
    return {region: [one for name in names for one in at_iterations(name)] for region, names in found.items()}


def by_region(words: Sequence[str], what: str) -> dict[str, list[str]]:
    """``REGION`` and ``REGION=LAYER`` -> region -> layers; an empty text stands for the region's own layer."""
    found: dict[str, list[str]] = {}
    for word in words:
        match = re.fullmatch(r"(\w+)(?:=(.+))?", word)
        if match is None:
            raise ValueError(f"{what} {word!r}: expected REGION or REGION=LAYER (for instance V4=features.16@2)")
        found.setdefault(match[1], []).append(match[2] or "")
    return found


def headline(options: Options, choice: Choice, planned: Sequence[RegionAsked], why: str) -> str:
    """The first line of the output: which recordings and networks were taken, and why."""
    simulated = any(word.split("=")[-1] in SIMULATED for word in options.recordings)
    label = "SIMULATED recordings" if simulated else "recordings"
    models, baseline = choice.skeletons
    if baseline is None:
        against = "no baseline"
    elif all(one.baseline is None for one in planned):
        against = "no baseline (one network alone)"
    else:
        against = f"baseline {'its own first pass' if choice.itself else _named(baseline)}"
    who = "; ".join(f"model {_named(network)}" for network in models)
    return f"{label} {' '.join(options.recordings)}; {who}; {against} ({why})"


def _named(network: Network) -> str:
    state = f", {network.feedback}" if network.feedback else ""
    return f"{network.name} [{network.weights}]{state}"


def default_name(options: Options, described: Sequence[Mapping[str, Any]]) -> str:
    """A folder name that is the same for the same question."""
    spec = options.model[0].split("/")[-1].replace(":", "-").replace(".py", "")
    return f"{spec}-{short_hash([options.decided(), [network['sha256'] for network in described]])}"


if __name__ == "__main__":
    sys.exit(main())
